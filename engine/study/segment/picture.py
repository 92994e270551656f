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
LETTERS = 21  # of a line above a picture


def colours(classes: int) -> np.ndarray:
    """Returns a colour for each class, uint8 (256, 3); what is ignored is white."""
    answer = np.full((256, 3), 255, np.uint8)
    if classes <= 20:
        found = matplotlib.colormaps["tab10" if classes <= 10 else "tab20"](np.arange(classes))
    else:
        found = matplotlib.colormaps["hsv"](np.arange(classes) / classes)
    answer[:classes] = np.round(255 * found[:, :3])
    answer[IGNORED] = 255
    return answer


def draw_masks(images: MaskedImages, rows: Sequence[SegmentRow]) -> Figure:
    """Draws the first test images: each of them, its mask, and what rows predict, the first `ROWS` that say it.

    Args:
        images: with masks.
        rows: the rows of a comparison. Those whose file was written before masks were kept are left out.
    """
    rows, classes = [row for row in rows if row.shown][:ROWS], images.classes
    shown = min(SHOWN, len(images.test))
    palette = torch.from_numpy(colours(len(classes)))
    heads = ["image", "mask", *(f"{row.name}: {100 * mean_iou(row.counts.sum(0)):.1f} %" for row in rows)]
    heads = [textwrap.fill(head, LETTERS) for head in heads]
    masks = [images.test.masks[:shown], *(row.masks() for row in rows)]
    top = height_of(max(head.count("\n") for head in heads) + 1, SIZE) + 2 * MARGIN
    there = sorted(set(torch.cat(masks).unique().tolist()) - {IGNORED})
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
        sheet.text(
            x, y, f"\N{BLACK SQUARE} {name}", SIZE, colour=matplotlib.colors.to_hex(palette[number].numpy() / 255)
        )
    return sheet.figure
