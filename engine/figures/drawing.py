"""Writing a figure to a file and to TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from engine.files import replacing
from engine.runs.tracking import Tracker


def draw(folder: Path, tracker: Tracker, step: int, tag: str, figure: Figure) -> None:
    """Draws a figure once, into TensorBoard under `tag` and into the folder as a PNG named after the tag's end.

    Raises:
        UserError: it cannot be written.
    """
    tracker.figure(step, tag, figure)
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # what the tracker has drawn
    with replacing(folder / f"{tag.rpartition('/')[2]}.png") as file:
        Image.fromarray(pixels).save(file, format="png")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    with replacing(path) as file:
        file.write(picture.getvalue())
