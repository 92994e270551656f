"""Places labels beside points of a figure so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 6  # points between a label and its point
# Where a label may stand: horizontal and vertical alignment, and the offset in units of GAP; the first that fits.
PLACES = (
    ("left", "bottom", 1, 0.4), ("left", "top", 1, -0.4), ("right", "bottom", -1, 0.4), ("right", "top", -1, -0.4),
    ("center", "bottom", 0, 1.4), ("center", "top", 0, -1.4), ("left", "center", 1.5, 0), ("right", "center", -1.5, 0),
    ("left", "bottom", 1, 2.4), ("left", "top", 1, -2.4), ("right", "bottom", -1, 2.4), ("right", "top", -1, -2.4),
    ("left", "bottom", 1, 4.4), ("left", "top", 1, -4.4), ("right", "bottom", -1, 4.4), ("right", "top", -1, -4.4),
)  # fmt: skip


def place_labels(axes: Axes, labels: Sequence[tuple[float, float, str]], optional: bool = False) -> None:
    """Writes a label beside each point, within the axes, where it covers no other label, point, line or error bar.

    The axes must hold everything else already: this lays out the figure. The search is greedy, in the given order.

    Args:
        axes: the axes.
        labels: x, y and text of each label.
        optional: whether to leave out a label that fits nowhere; otherwise it gets the place with the least overlap.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    taken = [_around(axes, x, y) for line in axes.lines for x, y in zip(line.get_xdata(), line.get_ydata())]
    taken += _along(axes)
    inside = axes.get_window_extent()
    for x, y, text in labels:
        style = {"fontsize": 7.5, "color": "0.25", "parse_math": False}
        label = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", **style)
        label.set_in_layout(False)
        overlaps = []
        for place in PLACES:
            _move(label, place)
            box = label.get_window_extent()
            outside = box.width * box.height - _overlap(box, inside)
            overlaps.append(sum(_overlap(box, other) for other in taken) + 3 * outside)
            if overlaps[-1] <= 0.5:
                break
        if optional and overlaps[-1] > 0.5:
            label.remove()
            continue
        _move(label, PLACES[min(range(len(overlaps)), key=overlaps.__getitem__)])
        taken.append(label.get_window_extent())


def _move(label, place: tuple[str, str, float, float]) -> None:
    horizontal, vertical, right, up = place
    label.set(ha=horizontal, va=vertical)
    label.set_position((GAP * right, GAP * up))


def _around(axes: Axes, x: float, y: float) -> Bbox:
    """Returns the place that a marker takes."""
    column, row = axes.transData.transform((x, y))
    half = 3.5 * axes.figure.dpi / 72
    return Bbox.from_extents(column - half, row - half, column + half, row + half)


def _along(axes: Axes) -> list[Bbox]:
    """Returns narrow places along lines and error bars."""
    paths = [line.get_xydata() for line in axes.lines if line.get_drawstyle() == "default"]
    paths += [path for bars in axes.collections for path in getattr(bars, "get_segments", list)()]
    boxes = []
    for path in paths:
        corners = axes.transData.transform(path)
        for start, end in pairwise(corners):
            count = max(1, int(np.hypot(*(end - start)) / 4))
            boxes += [Bbox.from_bounds(*(start + (end - start) * i / count) - 1, 2, 2) for i in range(count + 1)]
    return boxes


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else common.width * common.height
