"""The Pareto front of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from engine.study.points import Point


def front(points: Sequence[Point], cost: str = "gmacs") -> list[Point]:
    """Returns the points that no other point beats: none costs less and scores at least as much, or scores more and
    costs at most as much.

    Points that are equal in both are all on the front, or none of them. Points without the cost or without a score are
    left out.

    Args:
        points: the points.
        cost: a key of `engine.study.points.COSTS`.

    Returns:
        Points of the front, by rising cost and score.
    """
    best: list[Point] = []
    for point in sorted(
        (point for point in points if point.costs.get(cost) is not None and point.score is not None),
        key=lambda point: (point.costs[cost], -point.score),
    ):
        equal = best and (point.costs[cost], point.score) == (best[-1].costs[cost], best[-1].score)
        if not best or point.score > best[-1].score or equal:
            best.append(point)
    return best
