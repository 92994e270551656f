"""Colours and markers of points: the same in every figure of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.study.points import Point

# Okabe and Ito (2008), which people with any colour vision tell apart; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
UNMERGED = "no merging"


@dataclass(frozen=True)
class Style:
    """Colours by model, or by method where there is one model, and markers by method.

    Attributes:
        colours: by name of the model or method; beyond the eighth they repeat.
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
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods if by_method else models)}
    return Style(colours, {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(methods)}, by_method)
