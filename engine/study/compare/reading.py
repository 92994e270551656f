"""Reads everything that tools/compare.py can compare into points. A new kind of result is a line in READERS."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.study.compare.lines import unique
from engine.study.compare.runs import points_of_runs
from engine.study.compare.sweeps import points_of_sweeps
from engine.study.plan.index import INDEX, read_index
from engine.study.points import Point
from engine.study.table import Skip, common_name
from engine.study.zeroshot.points import is_zeroshot, points_of_zeroshot
from models.settings import UserError

PLAN = "study.yaml"  # a folder with this file is a study
OF_STUDIES = (PLAN, INDEX, "search.journal")  # files of a study folder that no comparison may replace


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        points: the rows, with unique names; one or more.
        notes: what was left out, and why, a line each.
    """

    points: list[Point]
    notes: list[str] = field(default_factory=list)

    @property
    def folders(self) -> list[Path]:
        """The run folders behind the points, each once."""
        return list(dict.fromkeys(folder for point in self.points for folder in point.folders))


@dataclass(frozen=True)
class Reader:
    """How one kind of result becomes points.

    Attributes:
        recognises: whether a path is of this kind; it may look for files, and does not read them.
        points: reads all paths of this kind together, since seeds share a point. What cannot be read is given to its
            second argument, which raises the error or leaves the path out.
    """

    recognises: Callable[[Path], bool]
    points: Callable[[Sequence[Path], Skip], list[Point]]


# The first that recognises a path reads it. The last one takes everything, and says what is wrong with it.
READERS: tuple[Reader, ...] = (
    Reader(lambda path: path.suffix == ".json" and not path.is_dir(), points_of_sweeps),
    Reader(is_zeroshot, points_of_zeroshot),
    Reader(lambda path: True, points_of_runs),
)


def read(paths: Sequence[Path]) -> Comparison:
    """Reads run folders, folders of all folds, sweeps and studies.

    What cannot be read is an error if it was given by itself; in a study it is left out with a note.

    Raises:
        UserError: something that was given cannot be read, or nothing is left of what was given.
    """
    left: list[Path] = []
    of_study: set[Path] = set()
    for given in paths:
        found = [path for path in results_of_study(given) if path not in left] if is_study(given) else [given]
        of_study.update(found if is_study(given) else ())
        left += found
    notes: list[str] = []

    def skip(path: Path, error: UserError) -> None:
        if path not in of_study:
            raise error
        notes.append(f"left out: {error}")

    points: list[Point] = []
    for reader in READERS:
        own = [path for path in left if reader.recognises(path)]
        left = [path for path in left if path not in own]
        read_now = _own_lines(reader.points(own, skip) if own else [], points)
        points = read_now + points  # runs first
    if not points:
        reason = f"nothing to compare; {notes[0]}" if notes else "nothing to compare: no finished run and no sweep"
        raise UserError(f"{paths[0]}: {reason}; run the study first")
    rows = {study / entry.folder: entry.row for study in paths if is_study(study) for entry in read_index(study) or ()}
    points = _on_lines_of_sweeps(points)
    names = unique([_name_in_plan(point, rows) for point in points])
    return Comparison([replace(point, name=name) for point, name in zip(points, names)], notes)


def _own_lines(points: list[Point], others: Sequence[Point]) -> list[Point]:
    """Returns points whose lines have other names than those of other points."""
    taken = list(dict.fromkeys(point.line for point in others if point.line is not None))
    own = list(dict.fromkeys(point.line for point in points if point.line is not None))
    names = dict(zip(own, unique([*taken, *own])[len(taken) :]))
    return [replace(point, line=names.get(point.line)) if point.line else point for point in points]


def _on_lines_of_sweeps(points: Sequence[Point]) -> list[Point]:
    """Returns points in which a run that was swept is on the line of its sweep, as one more budget."""
    runs = [(point.alike, frozenset(map(Path.resolve, point.folders))) for point in points]
    lines = {run: point.line for run, point in zip(runs, points) if point.line is not None and point.alike is not None}
    return [point if point.line else replace(point, line=lines.get(run)) for run, point in zip(runs, points)]


def is_study(path: Path) -> bool:
    """Returns whether a folder is that of a study."""
    return (path / PLAN).is_file()


def results_of_study(study: Path) -> list[Path]:
    """Returns the run folders and the sweeps of a study: those of its plan, in the plan's order.

    Without an index, all that are there, in the order of their names.
    """
    if (index := read_index(study)) is not None:
        return [path for of in ("folder", "sweep") for entry in index if (path := study / getattr(entry, of)).exists()]
    runs = [path for path in _sorted(study / "runs") if path.is_dir() and not path.name.startswith(".")]
    return runs + [path for path in _sorted(study / "sweeps") if path.suffix == ".json"]


def _name_in_plan(point: Point, rows: Mapping[Path, str]) -> str:
    """Returns a point's name, in which the row of the plan replaces the common name of its run folders."""
    found = {rows.get(folder) for folder in point.folders}
    row = found.pop() if len(found) == 1 else None
    names = [(folder.parent if re.fullmatch(r"fold\d+", folder.name) else folder).name for folder in point.folders]
    before = common_name(names) if names else ""
    return row + point.name.removeprefix(before) if row and point.name.startswith(before) else point.name


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
