"""Small sets of images that differ in every pixel that matters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.arrays import Arrays, RawData
from engine.data.images import open_rgb, to_square
from engine.data.settings import FileSettings


def random_arrays(count: int, size: int = 32, channels: int = 3, classes: int = 10, seed: int = 0) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Arrays(images, torch.randint(0, classes, (count,), generator=generator))


def files(size: int, fit: str = "crop", **others) -> FileSettings:
    return FileSettings(size=size, fit=fit, **others)


def read_image(path: Path, settings: FileSettings) -> np.ndarray:
    """A file as evaluation reads it, uint8 (size, size, 3)."""
    return to_square(open_rgb(path, settings), settings)


def save_image(path: Path, seed: int, size: tuple[int, int] = (12, 9)) -> Path:
    """A file of noise, width x height, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_arrays() -> Callable[..., Arrays]:
    return random_arrays


@pytest.fixture
def arrays() -> Arrays:
    return random_arrays(200)


@pytest.fixture
def raw() -> RawData:
    """Ten classes of 20 to 110 images, whose first two pixels hold the image's number."""
    labels = torch.cat([torch.full((20 + 10 * label,), label) for label in range(10)])
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(len(labels)) % 256, torch.arange(len(labels)) // 256
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test = random_arrays(10, size=2, channels=1)
    return RawData(Arrays(images[shuffled], labels[shuffled]), test, classes=[f"class {i}" for i in range(10)])
