"""Draws a model's mistakes: the confusion matrix, and examples of the most confused pairs of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from engine.data import Split
from engine.figures.gallery import shown
from engine.figures.sheet import GAP, Sheet
from engine.measure.confusion import Confused
from engine.measure.predictions import Predictions

WRITTEN = 30  # largest number of classes for which the matrix shows its numbers
NAMED = 150  # largest number of classes for which it shows their names
LETTERS = 24  # largest number of letters of such a name
PAIRS, EXAMPLES = 8, 6  # number of confused pairs that are drawn, and of images for each pair
CELL, PICTURE, ROW = 1.4, 1.28, 1.85  # inches: width of a column, side of a picture, height of a row


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix, with a row for each true class.

    A cell is coloured by the square root of its share of the row, so that single mistakes are visible. For up to
    WRITTEN classes the cells show their numbers, and for up to NAMED classes the axes show the names.

    Args:
        matrix: int64 (K, K), numbers of images; rows are true classes, columns predicted ones.
        classes: K names.
        title: the figure's title.
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
    if WRITTEN < count <= NAMED:  # lines guide the eye from a name to its cells
        axes.set_xticks(np.arange(-0.5, count), minor=True)
        axes.set_yticks(np.arange(-0.5, count), minor=True)
        axes.grid(which="minor", color="0.9", lw=0.3)
        axes.tick_params(which="minor", length=0)
    if count <= WRITTEN:
        for row, column in zip(*np.nonzero(matrix)):
            colour = "white" if shares[row, column] > 0.4 else "black"
            number = int(matrix[row, column])
            middle = {"ha": "center", "va": "center", "in_layout": False}  # it takes no room beside the matrix
            axes.text(column, row, number, fontsize=7, color=colour, **middle)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40, pad=0.01)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def confused_figure(
    pairs: Sequence[Confused], predictions: Predictions, images: Split, classes: Sequence[str], title: str
) -> Figure:
    """Draws the most confused pairs of classes, with a row of images for each pair.

    The images are those of one class that were predicted as the other, most confident first, and half of them in each
    direction if there are enough.

    Args:
        pairs: from `most_confused`; the first PAIRS are drawn.
        predictions: the predictions for N images.
        images: the N images, in the same order.
        classes: names of the classes.
        title: the figure's title.
    """
    pairs = pairs[:PAIRS]
    width, top = CELL * EXAMPLES, 0.75 if pairs else 0.5  # inches
    sheet = Sheet(width, top + ROW * max(1, len(pairs)) - 0.25, dpi=130)
    sheet.text(width / 2, 0.1, title if pairs else f"{title}: none", 10)
    for number, pair in enumerate(pairs):
        chosen, y = _examples(pair, predictions), top + ROW * number
        for column, (picture, i) in enumerate(zip(images.read(torch.from_numpy(chosen)), chosen)):
            predicted, true = (shown(classes[of[i]], 18) for of in (predictions.predicted, predictions.labels))
            left = CELL * column + (CELL - PICTURE) / 2
            sheet.picture(picture, left, y, PICTURE, f"{true}\nas {predicted}", size=7)
            confidence = f"{100 * predictions.probabilities[i]:.0f} %"
            sheet.text(left + PICTURE / 2, y + PICTURE + GAP, confidence, 6, colour="0.35")
    return sheet.figure


def _examples(pair: Confused, predictions: Predictions) -> np.ndarray:
    """Returns the positions of at most EXAMPLES mistakes between a pair, int64, those of `pair.first` first."""
    sides = []
    for true, predicted in ((pair.first, pair.second), (pair.second, pair.first)):
        wrong = np.flatnonzero((predictions.labels == true) & (predictions.predicted == predicted))
        sides.append(wrong[np.argsort(-predictions.probabilities[wrong], kind="stable")])
    room = max(EXAMPLES // 2, EXAMPLES - len(sides[1]))
    first = sides[0][:room]
    return np.concatenate([first, sides[1][: EXAMPLES - len(first)]])
