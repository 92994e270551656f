"""The table of the page: its columns, its cells, and the records that tools/compare.py writes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.study.compare.columns import MISSING, PointColumn, shown_columns
from engine.study.compare.outputs import records
from engine.study.points import Point

FILTERS = ("model", "merging")  # keys of the columns by whose values the table is filtered, besides words


@dataclass(frozen=True)
class PageTable:
    """The table of all points.

    Attributes:
        columns: those that the table of tools/compare.py shows.
        records: the values of each row by key; sorting compares these.
        cells: the text of each row.
        filters: the values of the columns FILTERS that have several, by key.
    """

    columns: list[PointColumn]
    records: list[dict[str, Any]]
    cells: list[list[str]]
    filters: dict[str, list[str]]


def table_of(points: Sequence[Point]) -> PageTable:
    """Returns the table of all points."""
    columns, rows = shown_columns(points), records(points)
    values = {key: list(dict.fromkeys(row[key] or MISSING for row in rows)) for key in FILTERS}
    several = {key: names for key, names in values.items() if len(names) > 1}
    return PageTable(columns, rows, [[column.text(point) for column in columns] for point in points], several)
