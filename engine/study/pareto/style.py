"""Colours and markers of points: the same in every figure of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import to_hex

from engine.study.points import Point

# Okabe and Ito (2008), which people with any colour vision tell apart; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
UNMERGED = "no merging"


def colours(count: int) -> list[str]:
    """Returns `count` different colours: up to eight that are easy to tell apart, and more from around a colour map."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [to_hex(matplotlib.colormaps["turbo"](0.04 + 0.92 * i / (count - 1))) for i in range(count)]


@dataclass(frozen=True)
class Style:
    """Colours by model, or by method where there is one model, and markers by method.

    Attributes:
        colours: by name of the model or method.
        markers: by name of the method; points without merging are circles.
        by_method: whether colours go by the method.
    """

    colours: dict[str, str]
    markers: dict[str, str]
    by_method: bool

    def colour(self, point: Point) -> str:
        """The colour of a point."""
        return self.colours.get((point.method or UNMERGED) if self.by_method else point.model, "0.4")

    def marker(self, point: Point) -> str:
        """The marker of a point."""
        return "o" if point.method is None else self.markers[point.method]


def style_of(points: Sequence[Point]) -> Style:
    """Returns the colours and markers of points, in the order in which models and methods appear."""
    models = list(dict.fromkeys(point.model for point in points))
    methods = list(dict.fromkeys(point.method for point in points if point.method is not None))
    by_method = len(models) == 1 and len(methods) > 1
    names = methods if by_method else models
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(methods)}
    return Style(dict(zip(names, colours(len(names)))), markers, by_method)
