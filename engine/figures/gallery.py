"""Draws galleries: small pictures in rows, each with a title, such as a model's most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.data import Split
from engine.figures.sheet import GAP, Sheet, height_of
from engine.measure.evaluate import Mistake

MOST = 8  # largest number of pictures in a row
CELL, PICTURE = 1.7, 1.55  # inches: width of a column, and side of a picture
SIZE = 8  # of the titles, points


def gallery(images: Tensor, titles: Sequence[str], columns: int, title: str = "", empty: str = "") -> Figure:
    """Draws pictures in rows.

    Args:
        images: uint8 (N, C, H, W), N >= 0; three channels are drawn in colour, other numbers as their mean, in grey.
        titles: N texts, above the pictures.
        columns: number of pictures in a row.
        title: the figure's title.
        empty: the text to show if there are no pictures.
    """
    rows = max(1, math.ceil(len(images) / columns))
    lines = max((text.count("\n") + 1 for text in titles), default=1)
    words, head = height_of(lines, SIZE), 0.3 if title else 0.0
    width, step = CELL * columns, PICTURE + words + 2 * GAP
    sheet = Sheet(width, rows * step + head + GAP)
    if title:
        sheet.text(width / 2, GAP, title, 9, colour="0.35")
    if not len(images):
        sheet.text(width / 2, head + step / 2, empty, 10, vertical="center")
    for i, (image, text) in enumerate(zip(images, titles)):
        row, column = divmod(i, columns)
        left, top = CELL * column + (CELL - PICTURE) / 2, head + row * step + words + 2 * GAP
        sheet.picture(image, left, top, PICTURE, text, SIZE)
    return sheet.figure


def wrong_pictures_figure(
    images: Tensor, true: Sequence[str], predicted: Sequence[str], confidences: Sequence[float]
) -> Figure:
    """Draws misclassified images, in the given order, with the true and the predicted class.

    Args:
        images: uint8 (N, C, H, W), N >= 0.
        true: names of the N true classes.
        predicted: names of the N predicted classes.
        confidences: the probabilities of the predicted classes.
    """
    titles = [
        f"{shown(right)}\nas {shown(wrong)} {100 * confidence:.0f} %"
        for right, wrong, confidence in zip(true, predicted, confidences, strict=False)
    ]
    return gallery(images, titles, min(MOST, max(1, math.ceil(math.sqrt(len(images))))), empty="none wrong")


def mistakes_figure(mistakes: Sequence[Mistake], images: Split, classes: Sequence[str]) -> Figure:
    """Draws the images of a split that an evaluation returned as mistakes.

    Args:
        mistakes: in the order of the pictures.
        images: the split.
        classes: names of the classes.
    """
    return wrong_pictures_figure(
        images.read(torch.tensor([mistake.position for mistake in mistakes], dtype=torch.int64)),
        [classes[mistake.label] for mistake in mistakes],
        [classes[mistake.predicted] for mistake in mistakes],
        [mistake.confidence for mistake in mistakes],
    )


def shown(name: str, most: int = 16) -> str:
    """Returns a name on one line, shortened to `most` characters, without characters that cannot be drawn."""
    name = " ".join(str(name).encode("utf-8", "replace").decode().split())
    return name if len(name) <= most else name[: most - 1] + "…"
