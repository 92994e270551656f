"""A picture of some test images, their masks, and the masks that each row predicts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from engine.data.masks import IGNORED, MaskedImages
from engine.figures.sheet import Sheet, height_of
from engine.measure.segmentation import mean_iou
from engine.study.segment.rows import SHOWN, SegmentRow

ROWS = 8  # of a comparison that are drawn at most, the first ones
SIDE, MARGIN, SIZE = 1.15, 0.06, 7.5  # of a picture and between two, inches; of a text, points
LETTERS = 19  # of a line above a picture


def colours(classes: Sequence[int]) -> np.ndarray:
    """Returns a colour for each of some numbers of classes, uint8 (256, 3); everything else is white."""
    answer, count = np.full((256, 3), 255, np.uint8), len(classes)
    if count <= 20:
        found = matplotlib.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))
    else:
        found = matplotlib.colormaps["hsv"](np.arange(count) / count)
    answer[list(classes)] = np.round(255 * found[:, :3])
    return answer


def draw_masks(images: MaskedImages, rows: Sequence[SegmentRow]) -> Figure:
    """Draws the first test images: each of them, its mask, and what rows predict, the first `ROWS` that say it.

    Args:
        images: with masks.
        rows: the rows of a comparison. Those whose file was written before masks were kept are left out.
    """
    rows, classes = [row for row in rows if row.shown][:ROWS], images.classes
    shown = min(SHOWN, len(images.test))
    heads = ["image", "mask", *(f"{row.name}: {100 * mean_iou(row.counts.sum(0)):.1f} %" for row in rows)]
    heads = [textwrap.fill(head, LETTERS) for head in heads]
    masks = [images.test.masks[:shown], *(row.masks() for row in rows)]
    top = height_of(max(head.count("\n") for head in heads) + 1, SIZE) + 2 * MARGIN
    there = sorted(set(torch.cat(masks).unique().tolist()) - {IGNORED})
    palette = torch.from_numpy(colours(there))
    step = SIDE + MARGIN
    width, below = MARGIN + len(heads) * step, top + shown * step
    fit = max(1, int(width / (SIDE + 4 * MARGIN)))  # names of classes in a line
    lines = -(-len(there) // fit)
    sheet = Sheet(width, below + lines * height_of(1, SIZE + 2) + MARGIN)
    for number in range(shown):
        pictures = [images.test.images[number], *(palette[mask[number].long()].movedim(-1, 0) for mask in masks)]
        for column, (picture, head) in enumerate(zip(pictures, heads, strict=True)):
            above = head if number == 0 else ""
            sheet.picture(picture, MARGIN + column * step, top + number * step, SIDE, above, SIZE)
    for place, number in enumerate(there):
        x, y = (place % fit + 0.5) * width / fit, below + place // fit * height_of(1, SIZE + 2)
        name = classes[number] if len(classes[number]) <= LETTERS else classes[number][: LETTERS - 3] + "..."
        sheet.picture(palette[number][:, None, None], x - SIDE / 2 - MARGIN, y + MARGIN / 4, 1.5 * MARGIN, "")
        sheet.text(x, y, name, SIZE)
    return sheet.figure
