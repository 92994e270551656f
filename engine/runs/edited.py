"""Finds run folders that were edited behind the run's back, or that hold files of several runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.seal import is_intact
from engine.runs.records.results import Results
from engine.settings.changes import changed_on_resume, decisive
from engine.settings.schema import RunSettings
from models.settings import UserError


def recorded(file: Path) -> Mapping[str, Any]:
    """Returns the settings that a checkpoint records, by dotted key; none where an older version wrote it."""
    settings = checkpoint.peek(file).get("settings")
    return settings if isinstance(settings, dict) else {}


def sound_record(files: Iterable[Path], settings: RunSettings) -> Mapping[str, Any]:
    """Returns the settings that the first intact checkpoint with a record of them records; none if there is none.

    Args:
        files: the checkpoints, the newest first.
        settings: of the run; a file that records nothing else is not read whole.
    """
    own = decisive(settings)
    for file in files:
        record = recorded(file)
        if record and (record.items() <= own.items() or is_intact(file)):
            return record
    return {}


def check_unedited(settings: RunSettings, file: Path, checkpoints: Iterable[Path]) -> None:
    """Checks that a run's checkpoints were trained with its settings, and all on the same data.

    Args:
        settings: of the run.
        file: where they were read.
        checkpoints: of the run: the best, then those to resume from, the newest first. They need not exist.

    Raises:
        UserError: the first difference.
    """
    data: dict[str, Path] = {}  # fingerprint -> a checkpoint that has it
    paths = list(checkpoints)
    for path in paths:
        fingerprint = _fingerprint(path)
        changed = changed_on_resume(recorded(path), settings, may_go_on=True)
        other_data = fingerprint is not None and bool(data) and fingerprint not in data
        # What a damaged file says may be what is damaged, which loading it reports.
        if (changed or other_data) and not is_intact(path):
            continue
        if other_data:
            data = {known: other for known, other in data.items() if is_intact(other)}
            other_data = bool(data)
        if changed:
            raise UserError(f"{changed}, says {path}; {_fix(settings, file, path, paths[:2])}")
        if other_data:
            names = f"{next(iter(data.values())).name} and {path.name}"
            raise UserError(f"{path.parent}: {names} were trained on different data; put the run's own files back")
        if fingerprint is not None:
            data[fingerprint] = path


def _fix(settings: RunSettings, file: Path, path: Path, newest: list[Path]) -> str:
    """Returns what to do where `path`, one of a run's checkpoints, records other settings than the run's.

    Only its newest checkpoints tell a file of another run from an edit: a checkpoint before them may be from the time
    before the run was made longer.
    """
    for other in newest:
        if (record := recorded(other)) and not changed_on_resume(record, settings) and is_intact(other):
            return f"{other.name} was trained with those of {file.name}: put the run's own {path.name} into the folder"
    return (
        f"put the old value back into {file.name}, or the run's own {path.name} into the folder; to train with other "
        "settings, start a run under another name="
    )


def check_own(results: Results, file: Path, settings: RunSettings, best: Path) -> None:
    """Checks that results are those of a run, as far as its settings and its best weights say.

    Args:
        results: as they were read.
        file: where they were read.
        settings: of the run.
        best: the checkpoint with its best weights; it need not exist.

    Raises:
        UserError: the first difference.
    """
    own = {"seed": settings.seed, "fold": settings.split.fold, "data_sha256": _fingerprint(best)}
    for key, value in own.items():
        found = getattr(results, key)
        if key == "data_sha256" and (None in (found, value) or (found != value and not is_intact(best))):
            continue  # not recorded, or damaged, which loading it reports
        if found != value:
            raise UserError(
                f"{file}: {key} = {found!r}, and the run has {value!r}: of another run, or edited; put the run's own "
                f"file back, or delete it and test again with --resume {file.parent}"
            )


def _fingerprint(file: Path) -> str | None:
    """Returns the fingerprint of the data that a checkpoint was trained on; None if it does not say."""
    value = checkpoint.peek(file).get("data")
    return value if isinstance(value, str) else None
