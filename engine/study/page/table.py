"""The table of the page, made from the records that tools/compare.py writes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.study.page.figure import cost_text, score_text
from engine.study.points import COSTS, Point
from engine.tasks import title_of


@dataclass(frozen=True)
class Head:
    """A column: its key in the records, its title, and whether it holds words."""

    key: str
    title: str
    words: bool


@dataclass(frozen=True)
class TableOfPoints:
    """Columns, the records with the numbers, and the text of each cell."""

    heads: list[Head]
    records: list[dict[str, Any]]
    cells: list[list[str]]


def table_of(points: Sequence[Point]) -> TableOfPoints:
    metrics = " or ".join(dict.fromkeys(title_of(point.metric) for point in points))
    costs = {key: title for key, title in COSTS.items() if any(point.costs.get(key) is not None for point in points)}
    extra = [*dict.fromkeys(key for point in points for key in point.extra)]
    words = {key for key in extra if any(isinstance(point.extra.get(key), str) for point in points)}
    heads = [Head(key, key, True) for key in ("name", "model", "method", "budget")]
    heads += [Head("repetitions", "runs", False), Head("score", f"test {metrics}, %", False)]
    heads += [Head(key, title, False) for key, title in costs.items()]
    heads += [Head(key, key, key in words) for key in extra]
    records = [_record(point) for point in points]
    cells = [[_cell(point, record, head) for head in heads] for point, record in zip(points, records)]
    return TableOfPoints(heads, records, cells)


def _record(point: Point) -> dict[str, Any]:
    return {
        "name": point.name,
        "model": point.model,
        "method": point.method,
        "budget": point.budget,
        "metric": point.metric,
        "repetitions": len(point.scores),
        "score": point.score,
        "spread": point.spread,
        "images": point.images,
        **{key: point.costs.get(key) for key in COSTS},
        **point.extra,
    }


def _cell(point: Point, record: dict[str, Any], head: Head) -> str:
    value = record.get(head.key)
    if value is None:
        return "-"
    if head.key == "score":
        return score_text(point)
    if head.key in COSTS:
        return cost_text(head.key, value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
