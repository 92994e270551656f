"""Writes figures to PNG and SVG files and to TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from engine.files import replacing
from engine.runs.tracking import Tracker


def draw(folder: Path, tracker: Tracker, step: int, tag: str, figure: Figure) -> None:
    """Draws a figure once, and writes it to TensorBoard and to a PNG file.

    Args:
        folder: the folder for the file, which is named after the last part of the tag.
        tracker: writes to TensorBoard.
        step: number of optimizer steps so far.
        tag: the figure's tag in TensorBoard, such as "test/confusion".
        figure: the figure.

    Raises:
        UserError: the file cannot be written.
    """
    tracker.figure(step, tag, figure)
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # drawn by the tracker
    with replacing(folder / f"{tag.rpartition('/')[2]}.png") as file:
        Image.fromarray(pixels).save(file, format="png")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure to a file, completely or not at all: as SVG if its name ends with .svg, otherwise as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    picture, kind = io.BytesIO(), "svg" if path.suffix.lower() == ".svg" else "png"
    figure.savefig(picture, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    with replacing(path) as file:
        file.write(picture.getvalue())
