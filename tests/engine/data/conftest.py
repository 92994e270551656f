"""Small sets of images that differ in every pixel that matters."""

from collections.abc import Callable

import pytest
import torch

from engine.data.arrays import Arrays, RawData


def random_arrays(count: int, size: int = 32, channels: int = 3, classes: int = 10, seed: int = 0) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Arrays(images, torch.randint(0, classes, (count,), generator=generator))


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
