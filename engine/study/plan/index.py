"""`runs.json` of a study folder: which run folder belongs to which row of the plan. Their state is in the folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from engine.files import write_json_atomic
from engine.runs.records.record import Count, Record
from models.settings import UserError

INDEX = "runs.json"


class Entry(Record):
    """A run of the plan."""

    row: str = Field(description="the name of its row")
    seed: Count = Field(description="its seed")
    fold: Count | None = Field(description="its fold; None without folds")
    folder: str = Field(description="its run folder, relative to the study folder")

    @property
    def sweep(self) -> str:
        """The file of its budget sweep, relative to the study folder."""
        parts = Path(self.folder).parts[1:]
        return f"sweeps/{'_'.join(parts)}.json"


def write_index(study: Path, entries: Sequence[Entry]) -> None:
    """Writes the index of a study.

    Raises:
        UserError: the file cannot be written.
    """
    write_json_atomic(study / INDEX, [entry.model_dump() for entry in entries])


def read_index(study: Path) -> list[Entry] | None:
    """Returns the runs of a study in the order of its plan; None if there is no index, or it is damaged."""
    try:
        found = json.loads((study / INDEX).read_text(encoding="utf-8"))
        return [Entry.checked(entry) for entry in found] if isinstance(found, list) else None
    except (OSError, ValueError, TypeError, UserError):
        return None
