"""The file in which optuna keeps the trials of a search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engine.files import writing
from models.settings import UserError


def storage_of(optuna: Any, file: Path) -> Any:
    """Returns optuna's storage in a file, which need not exist yet. The study is locked by this process.

    What a crash in the middle of a write leaves is removed: a last line without its end, and optuna's own lock.

    Args:
        optuna: the module.
        file: the journal.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """

    class Backend(optuna.storages.journal.JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with writing(file):
                super().append_logs(logs)

    with writing(file):
        file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
        _complete(file)
        backend = Backend(str(file))
    try:
        return optuna.storages.JournalStorage(backend)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged, {type(error).__name__}: {error}; put a copy of it back, or move it and the runs of its "
            "trials away to search anew"
        ) from None


def _complete(file: Path) -> None:
    """Removes a last line without its end. Optuna would append to it, and could not read it then."""
    if not file.exists():
        return
    with open(file, "r+b") as journal:
        content = journal.read()
        if (whole := content.rfind(b"\n") + 1) < len(content):
            journal.truncate(whole)
            os.fsync(journal.fileno())
