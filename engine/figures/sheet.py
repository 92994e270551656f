"""A sheet of small pictures with texts around them, all on one pair of matplotlib axes.

Axes for each picture would take 20 to 30 ms each, which for the pictures of a run is most of the time that a short run
takes.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

LINE = 0.0165  # inches that a line of text takes for each point of its size
GAP = 0.05  # inches between a picture and its text


class Sheet:
    """An empty sheet on which pictures are placed; positions are in inches from the top left corner.

    Args:
        width: of the sheet, inches.
        height: of the sheet, inches.
        dpi: pixels for each inch; None: matplotlib's default.

    Attributes:
        figure: the figure.
    """

    def __init__(self, width: float, height: float, dpi: float | None = None) -> None:
        self.figure = Figure(figsize=(width, height), dpi=dpi)
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self._axes.set_axis_off()

    def picture(self, image: Tensor, left: float, top: float, side: float, above: str, size: float = 8) -> None:
        """Places a picture in the middle of a square, with a text above it.

        Args:
            image: uint8 (C, H, W); three channels are drawn in colour, other numbers as their mean, in grey.
            left, top: the corner of the square.
            side: of the square; the longer side of the picture is as long.
            above: the text, of one line or several.
            size: of the text, points.
        """
        rows, columns = image.shape[-2:]
        width, height = (side * extent / max(rows, columns) for extent in (columns, rows))
        x, y = left + (side - width) / 2, top + (side - height) / 2
        box = (x, x + width, y + height, y)
        self._axes.imshow(as_picture(image), cmap="gray", vmin=0, vmax=255, extent=box, aspect="auto")
        self.text(left + side / 2, y - GAP, above, size, vertical="bottom")

    def text(self, x: float, y: float, words: str, size: float, vertical: str = "top", colour: str = "black") -> None:
        """Writes a text, centred at `x`; `vertical` says which part of it is at `y`."""
        self._axes.text(x, y, words, fontsize=size, ha="center", va=vertical, color=colour, parse_math=False)


def height_of(lines: int, size: float) -> float:
    """Returns the height of so many lines of text, inches; `size` in points."""
    return LINE * size * lines


def as_picture(image: Tensor) -> np.ndarray:
    """Converts an image for matplotlib: (C, H, W) -> (H, W, 3) for three channels, else (H, W), the channels' mean."""
    pixels = image.cpu().numpy()
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0)
