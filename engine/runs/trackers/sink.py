"""What a tracker of `log.trackers` is: where the numbers, pictures and texts of a run go beside its metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.files import write_json_atomic

PROJECT = "hybridmerge"  # what programs call a group of runs, unless their own variables name another
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class About:
    """What a tracker is told when a session of a run begins.

    Attributes:
        folder: the run folder.
        start: the step from which on numbers are written.
        title: what the run is called.
        home: the folder of all runs; None: that in which the run folder lies.
        settings: of the run, by dotted key; values are numbers and texts.
    """

    folder: Path
    start: int = 0
    title: str = ""
    home: Path | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    @property
    def of_all_runs(self) -> Path:
        return self.home or self.folder.parent


class Sink(Protocol):
    """A tracker of one run.

    Attributes:
        discards: whether it discards by itself what an interrupted session wrote after the checkpoint. One that does
            not is not told again what it knows.
    """

    discards: bool

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers under tags such as "train/loss"."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes a text, in Markdown."""

    def picture(self, step: int, tag: str, pixels: Pixels) -> None:
        """Writes a picture, uint8 (H, W, 3)."""

    def results(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        """Writes what the run measured, by titles, and its settings by dotted key, once, at the end of the run."""

    def ending(self) -> AbstractContextManager[None]:
        """A block that writes the last of the run; one that was interrupted in it comes here again."""

    def flush(self) -> None:
        """Writes everything so far to disk."""

    def close(self, *, finished: bool) -> None:
        """Ends the session; `finished`: without an error or a signal."""


def kept_id(folder: Path, program: str) -> str | None:
    """Returns the id by which another program knows the run; None: it does not know it yet."""
    return _ids(folder).get(program)


def keep_id(folder: Path, program: str, identity: str) -> None:
    """Keeps the id by which another program knows the run, so that a resumed run continues it."""
    write_json_atomic(folder / IDS, {**_ids(folder), program: identity})


IDS = "trackers.json"  # in a run folder


def _ids(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
