"""A comparison as a table, and as CSV, Markdown and JSON files; all show the values of `columns`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.tables.cells import guarded, quoted
from engine.files import write_json_atomic, write_text_atomic
from engine.study.compare import differences
from engine.study.compare.columns import PointColumn, columns_of, key_of, shown_columns, spread_percent
from engine.study.compare.differences import Pair
from engine.study.points import Point
from engine.tables import Column, markdown


def table(points: Sequence[Point]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of a comparison as `engine.tables.print_table` takes them."""
    columns = shown_columns(points)
    cells = [[column.text(point) for column in columns] for point in points]
    return [Column(column.title, column.words) for column in columns], cells


def records(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Returns the values of each point by key, with full precision; None where one is missing.

    Every point has every key. Standard deviations over seeds and folds have the key of their mean with `_std` before
    the unit, such as "score_std_percent".
    """
    columns = columns_of(points)
    return [_record(columns, point, points) for point in points]


def _record(columns: Sequence[PointColumn], point: Point, points: Sequence[Point]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    spreads = {title for other in points for title in other.spreads}
    for column in columns:
        record[column.key] = column.value(point)
        if column.key == "score_percent":
            record |= {"score_std_percent": spread_percent(point), "metric": point.metric, "images": point.images}
        if column.title in spreads:
            record[_spread_key(column.title)] = point.spreads.get(column.title)
    return {**record, "line": point.line}


def _spread_key(title: str) -> str:
    name, comma, unit = title.rpartition(", ")
    return key_of(f"{name} std, {unit}" if comma else f"{title} std")


def write_csv(points: Sequence[Point], file: Path) -> None:
    """Writes `records` as CSV in UTF-8: empty cells are missing values, and words are guarded against spreadsheets.

    Raises:
        UserError: the file cannot be written.
    """
    rows = records(points)
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    write_text_atomic(file, "".join(",".join(quoted(cell) for cell in row) + "\n" for row in cells))


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return guarded(value) if isinstance(value, str) else repr(value)


def write_markdown(points: Sequence[Point], file: Path, notes: Sequence[str] = (), pairs: Sequence[Pair] = ()) -> None:
    """Writes the table as Markdown, and below it that of the differences, and notes.

    Raises:
        UserError: the file cannot be written.
    """
    below = [markdown(*differences.table(pairs)), *differences.explanation(pairs)] if pairs else []
    write_text_atomic(file, "\n\n".join([markdown(*table(points)), *below, *notes]) + "\n")


def write_json(points: Sequence[Point], file: Path, notes: Sequence[str] = (), pairs: Sequence[Pair] = ()) -> None:
    """Writes `records` as JSON, each with its score by seed and fold and its run folders.

    Args:
        points: the points.
        file: where to write.
        notes: what was left out.
        pairs: the differences between the points, as far as they were computed.

    Raises:
        UserError: the file cannot be written.
    """
    rows = [
        {
            **record,
            "scores_percent": {name: 100 * score for name, score in point.scores.items()},
            "folders": [str(folder) for folder in point.folders],
        }
        for record, point in zip(records(points), points, strict=True)
    ]
    write_json_atomic(file, {"rows": rows, "differences": [pair.to_json() for pair in pairs], "notes": list(notes)})
