"""Points for tests of the page, without runs."""

from __future__ import annotations

from typing import Any

from engine.study.points import Point

EVIL = "<script>alert(1)</script>"


def point(name: str, scores: list[float], gmacs: float | None, **fields: Any) -> Point:
    """A point whose repetitions are seeds."""
    values: dict[str, Any] = {"model": "vit", "method": None, "budget": None, "metric": "top1", "images": 360}
    costs = {"gmacs": gmacs, "params_m": 5.0} | fields.pop("costs", {})
    seeds = {f"seed {i}": score for i, score in enumerate(scores)}
    return Point(name=name, scores=seeds, costs=costs, **values | fields)


def points() -> list[Point]:
    """Two families; one with three budgets, one with a name that is a script, and one row without GMACs.

    As text, 9.5 GMACs come after 10.2, and 90 million parameters before 100.
    """
    merged = {"model": "hybrid", "method": "tome", "line": "hybrid tome"}
    return [
        point("hybrid r=2", [0.90, 0.92], 10.2, budget="r = 2", costs={"params_m": 100.0}, **merged),
        point("hybrid r=4", [0.89, 0.89], 9.5, budget="r = 4", costs={"params_m": 90.0}, **merged),
        point("hybrid r=8", [0.70, 0.80], 1.5, budget="r = 8", **merged),
        point(EVIL, [0.85], 9.9, model=EVIL, extra={"note": EVIL, "images/s": 12.5}),
        point("uncounted", [0.95], None, model="timm:uncounted", extra={"images/s": 9.0}),
    ]
