"""Draws photographs after merging: every patch in the mean colour of its token, with lines between different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from textwrap import fill
from typing import NamedTuple

from einops import reduce
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from engine.figures.merge_tracing import Merged
from engine.wording import counted
from models.merging.contract import Grid

EXPLAINED = "Every patch has the mean colour of the token that it was merged into; lines separate different tokens."
IN_A_ROW = 7  # most steps in a row
WIDTH = 12.3  # of a figure with a usual number of columns, inches


class Row(NamedTuple):
    """A photograph, uint8 (3, H, W), its label, and the ways in which it was merged."""

    label: str
    image: Tensor
    merged: list[Merged]


def painted(image: Tensor, index: Tensor) -> Tensor:
    """Gives every patch the mean colour of its token's patches.

    Args:
        image: uint8 (3, H, W).
        index: int64 (rows, columns), the token of each patch.

    Returns:
        RGB in [0, 1], float32 (rows, columns, 3).
    """
    rows, columns = index.shape
    colour = reduce(image.float() / 255, "c (h p) (w q) -> (h w) c", "mean", h=rows, w=columns)
    token = index.flatten()
    count = token.bincount().clamp(min=1)  # a token may have no patch
    total = colour.new_zeros(len(count), 3).index_add(0, token, colour)
    return (total / count.unsqueeze(1))[index]


def borders(index: Tensor) -> list[tuple[Grid, Grid]]:
    """Returns the lines between neighbouring patches of different tokens.

    Args:
        index: int64 (rows, columns), the token of each patch.

    Returns:
        The (x, y) of both ends of each line, in patches.
    """
    right = (index[:, :-1] != index[:, 1:]).nonzero().tolist()
    below = (index[:-1] != index[1:]).nonzero().tolist()
    vertical = [((column + 1, row), (column + 1, row + 1)) for row, column in right]
    return vertical + [((column, row + 1), (column + 1, row + 1)) for row, column in below]


def draw_rows(rows: Sequence[Row], caption: Sequence[str]) -> Figure:
    """Draws a row for each photograph: the photograph itself, then a column for each way of merging.

    Args:
        rows: photographs of one size, merged in the same ways.
        caption: paragraphs below the picture.
    """
    columns = 1 + len(rows[0].merged)
    figure, picture = _empty(len(rows), columns, 0.04, 0.5, caption)
    for row, (first, *others) in zip(rows, figure.subplots(len(rows), columns, squeeze=False)):
        first.imshow(row.image.permute(1, 2, 0).numpy())
        first.set_ylabel(row.label[: int(16 * picture)], fontsize=8)  # what fits
        for axes, merged in zip(others, row.merged):
            draw_merged(axes, row.image, merged)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    photograph, *others = figure.axes[:columns]
    photograph.set_title(f"photograph\n{rows[0].merged[0].index.numel()} patches", fontsize=8)
    for axes, merged in zip(others, rows[0].merged):
        axes.set_title(f"{merged.title}\n{counted(merged.tokens, 'token')}", fontsize=8)
    return figure


def draw_steps(image: Tensor, steps: Sequence[Merged], caption: Sequence[str]) -> Figure:
    """Draws a photograph and what is left of it after each of several steps, in reading order.

    Args:
        image: uint8 (3, H, W).
        steps: one step or more, the first one first.
        caption: paragraphs below the picture.
    """
    count = 1 + len(steps)
    rows = ceil(count / IN_A_ROW)
    columns = ceil(count / rows)  # rows of the same length, as far as possible
    figure, _ = _empty(rows, columns, 0.26, 0.1, caption, image.shape[1] / image.shape[2])
    photograph, *others = cells = figure.subplots(rows, columns, squeeze=False).flatten()
    photograph.imshow(image.permute(1, 2, 0).numpy())
    photograph.set_title(f"photograph: {counted(steps[0].index.numel(), 'patch')}", fontsize=8)
    for axes, step in zip(others, steps):
        draw_merged(axes, image, step)
        axes.set_title(f"{step.title}: {counted(step.tokens, 'token')}", fontsize=8)
    for axes in cells:
        axes.set_axis_off()
    return figure


def _empty(
    rows: int, columns: int, between: float, above: float, caption: Sequence[str], shape: float = 1.0
) -> tuple[Figure, float]:
    """Returns an empty figure of the right size with its caption, and the width of one picture, inches.

    Args:
        rows, columns: how many pictures it will hold.
        between: height for each row besides the pictures, inches.
        above: height for all rows together, inches.
        caption: paragraphs.
        shape: a picture's height divided by its width.
    """
    side = min(2.2, max(1.2, WIDTH / columns))  # inches
    width = max(columns * side, 5.5)
    text = "\n".join(fill(paragraph, int(17 * width)) for paragraph in caption)
    picture = (width - 0.25) / columns  # inches, without the labels
    height = rows * (picture * shape + between) + above + 0.14 * (1 + text.count("\n"))
    figure = Figure(figsize=(width, height), layout="compressed")
    margin = 0.06 / height  # above the titles
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0, rect=(0, 0, 1, 1 - margin))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure, picture


def draw_merged(axes: Axes, image: Tensor, merged: Merged) -> None:
    """Draws one way of merging: patches in their tokens' colours, lines between tokens."""
    rows, columns = merged.index.shape
    axes.imshow(painted(image, merged.index).numpy(), extent=(0, columns, rows, 0), interpolation="nearest")
    for colour, lw in (("0.2", 1.1), ("white", 0.4)):  # visible on light and on dark
        axes.add_collection(LineCollection(borders(merged.index), colors=colour, linewidths=lw))
