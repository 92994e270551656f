"""Draws the images and the table of the multi-label run from a seed: draw.py FOLDER."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIZE = 48, 16
LABELS = ("bright", "red")


def draw(folder: Path) -> Path:
    """Draws images of noise, of which half are bright and every third is red; returns the path of their table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = [("path", *LABELS)]
    for number in range(COUNT):
        bright, red = int(number % 2 == 0), int(number % 3 == 0)
        pixels = np.random.default_rng(number).integers(0, 100, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels += np.uint8(80 * bright)
        pixels[..., 0] += np.uint8(70 * red)
        name = f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append((name, bright, red))
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
