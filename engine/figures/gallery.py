"""Draws galleries: small pictures in rows, each with a title, such as a model's most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from engine.data import Split
from engine.measure.evaluate import Mistake

MOST = 8  # largest number of pictures in a row


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
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows + (0.3 if title else 0.0)), layout="constrained")  # inches
    if title:
        figure.suptitle(title, fontsize=9, color="0.35", parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    if not len(images):
        axes[0, 0].text(0.5, 0.5, empty, ha="center")
    for axis, image, text in zip(axes.flat, images, titles):
        axis.imshow(as_picture(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(text, fontsize=8, parse_math=False)
    return figure


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


def as_picture(image: Tensor) -> np.ndarray:
    """Converts an image for matplotlib: (C, H, W) -> (H, W, 3) for three channels, else (H, W), the channels' mean."""
    pixels = image.cpu().numpy()
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0)


def shown(name: str, most: int = 16) -> str:
    """Returns a name on one line, shortened to `most` characters, without characters that cannot be drawn."""
    name = " ".join(str(name).encode("utf-8", "replace").decode().split())
    return name if len(name) <= most else name[: most - 1] + "…"
