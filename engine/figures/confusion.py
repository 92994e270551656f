"""Pictures of what a model confuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from engine.data import Split
from engine.figures.gallery import as_picture, shown
from engine.measure.confusion import Confused
from engine.measure.predictions import Predictions

WRITTEN = 30  # classes up to which the numbers stand in the confusion matrix


NAMED = 150  # classes up to which their names stand beside it


LETTERS = 24  # of a name beside the confusion matrix


PAIRS, EXAMPLES = 8, 6  # most confused pairs that are drawn, and images of each


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix: a row for each true class, coloured by the share of its images that each class was said
    for, by its square root, so that single mistakes are seen; with numbers for few classes, with names for some,
    without either for many.

    Args:
        matrix: int64 (K, K), of images; rows are true.
        classes: K names.
        title: above it.
    """
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = count <= NAMED
    side = max(3.0, min(0.42 * count, 0.115 * count + 3.2)) if named else 9.0  # inches
    figure = Figure(figsize=(side + 2.2, side + 1.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if named:
        size = 8 if count <= WRITTEN else 5
        names = [shown(name, LETTERS) for name in classes]
        axes.set_xticks(range(count), names, fontsize=size, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        axes.tick_params(length=2)
    if WRITTEN < count <= NAMED:  # lines that lead from a name to its cells
        axes.set_xticks(np.arange(-0.5, count), minor=True)
        axes.set_yticks(np.arange(-0.5, count), minor=True)
        axes.grid(which="minor", color="0.9", lw=0.3)
        axes.tick_params(which="minor", length=0)
    if count <= WRITTEN:
        for row, column in zip(*np.nonzero(matrix)):
            colour = "white" if shares[row, column] > 0.4 else "black"
            number = int(matrix[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40, pad=0.01)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def confused_figure(
    pairs: Sequence[Confused], found: Predictions, images: Split, classes: Sequence[str], title: str
) -> Figure:
    """Draws the most confused pairs, a row for each: images of one class that were taken for the other, those with the
    highest probability first, as many of each direction as there is room for.

    Args:
        pairs: as `most_confused` gives them; the first few are drawn.
        found: what was said of each image.
        images: the N images, in that order.
        classes: the names.
        title: above it.
    """
    pairs, rows = pairs[:PAIRS], max(1, len(pairs[:PAIRS]))
    width, height = 1.4 * EXAMPLES, 1.85 * rows + 0.5  # inches
    figure = Figure(figsize=(width, height), dpi=130)
    figure.suptitle(title if pairs else f"{title}: none", y=1 - 0.1 / height, va="top", fontsize=10, parse_math=False)
    grid = figure.subplots(rows, EXAMPLES, squeeze=False)  # laid out by hand: ten times as fast as by constraints
    figure.subplots_adjust(0.01, 0.2 / height, 0.99, 1 - 0.75 / height, wspace=0.08, hspace=0.45)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, pair in zip(grid, pairs):
        chosen = _examples(pair, found)
        for axes, picture, i in zip(row, images.read(torch.from_numpy(chosen)), chosen):
            axes.imshow(as_picture(picture), cmap="gray", vmin=0, vmax=255)
            said, true = (shown(classes[of[i]], 18) for of in (found.predicted, found.labels))
            axes.set_title(f"{true}\nas {said}", fontsize=7, parse_math=False)
            axes.text(
                0.5,
                -0.02,
                f"{100 * found.probabilities[i]:.0f} %",
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=6,
                color="0.35",
            )
    return figure


def _examples(pair: Confused, found: Predictions) -> np.ndarray:
    """Positions of mistakes between the pair, int64, at most EXAMPLES: first those of the class that loses more."""
    sides = []
    for true, said in ((pair.first, pair.second), (pair.second, pair.first)):
        wrong = np.flatnonzero((found.labels == true) & (found.predicted == said))
        sides.append(wrong[np.argsort(-found.probabilities[wrong], kind="stable")])
    room = max(EXAMPLES // 2, EXAMPLES - len(sides[1]))
    first = sides[0][:room]
    return np.concatenate([first, sides[1][: EXAMPLES - len(first)]])
