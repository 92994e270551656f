"""Mistakes in segmenting images with a probe of a pretrained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.engine.study.segment.conftest import make_files
from tests.mistakes.mistake import Mistake

SET = "tools/segment.py --cfg small.yaml data='{name: masks, path: street}'"


def _files(folder: Path) -> None:
    make_files(folder)


def _masks(folder: Path, **wrong: np.ndarray) -> None:
    """Images and masks in street/, of which some are wrong."""
    make_files(folder)
    for kind in ("images", "masks"):
        (folder / "street" / kind).mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (64, 64)).save(folder / "street" / "images" / f"{number}.jpg")
        mask = wrong.get(f"mask{number}", np.full((64, 64), number % 2, np.uint8))
        Image.fromarray(mask).save(folder / "street" / "masks" / f"{number}.png")


def _lone_image(folder: Path) -> None:
    _masks(folder)
    (folder / "street" / "masks" / "3.png").rename(folder / "street" / "masks" / "3_mask.png")


def _other_size(folder: Path) -> None:
    _masks(folder, mask3=np.zeros((32, 32), np.uint8))


def _colours(folder: Path) -> None:
    _masks(folder, mask3=np.zeros((64, 64, 3), np.uint8))


def _many_values(folder: Path) -> None:
    _masks(folder, mask3=np.full((64, 64), 7, np.uint8))


MISTAKES: list[Mistake] = [
    Mistake(
        "Images for segmentation without a mask each",
        SET,
        "data.path = 'street': no mask of the same name for 'images/3.jpg' (1 of 6); add it",
        _lone_image,
    ),
    Mistake(
        "A mask of another size than its image",
        SET,
        "data.path = 'street': 1 of 6 images cannot be read: 'street/masks/3.png' (32 x 32 pixels, its image has 64 x "
        "64); repair them",
        _other_size,
    ),
    Mistake(
        "A mask in colours",
        SET,
        "data.path = 'street': 1 of 6 images cannot be read: 'street/masks/3.png' (its pixels are RGB, no classes' "
        "numbers; save it in a palette or in 8-bit grey); repair them",
        _colours,
    ),
    Mistake(
        "A mask with a value that is no class",
        "tools/segment.py --cfg small.yaml data='{name: masks, path: street, classes: [road, car]}'",
        "data.path = 'street': 1 mask has values up to 7, and data.classes names 0 to 1: 'street/masks/3.png'; name "
        "all classes, or use 255 for pixels without one",
        _many_values,
    ),
    Mistake(
        "More planted objects than classes",
        "tools/segment.py --cfg small.yaml data.objects=[2,4]",
        "data.objects = [2, 4]: up to 4 objects and a background are of different classes, and data.path = 'images' "
        "has 4; give at most 3",
        _files,
    ),
    Mistake(
        "A CNN stage whose training diverges",
        "tools/segment.py --cfg small.yaml probe.cnn='{block: convnext, depth: 4, dim: 4, layer_scale: 1000, lr: 100}'",
        "probe.cnn.lr = 100.0: the training of the CNN stage diverged; give a smaller one",
        _files,
    ),
    Mistake(
        "A probe of a block that the model does not have",
        "tools/segment.py --cfg small.yaml probe.blocks=[3,9]",
        "probe.blocks = [3, 9]: the model has 6 blocks; give numbers from 1 to 6",
        _files,
    ),
    Mistake(
        "A grid of maps that is finer than the image",
        "tools/segment.py --cfg small.yaml probe.grid=100",
        "probe.grid = 100: an image has 64 x 64 pixels; give at most 64",
        _files,
    ),
    Mistake(
        "Times of rows whose numbers of tokens depend on weights that are not kept",
        "tools/segment.py --cfg small.yaml budgets='[{threshold: 0.9}]' probe.cnn='{model_lr: 1e-4}' --time 9",
        "--time: row 'tome, threshold 0.9' merges as many tokens as its trained model says, which is not kept; leave "
        "out --time, or probe.cnn.model_lr",
        _files,
    ),
]
