"""Images per second of the training data, without a model: from memory, and from files beside a plain DataLoader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from engine.cost.speed import timed
from engine.data import Arrays, AugmentSettings, SplitSettings, build_data
from engine.data.loader import TrainLoader
from engine.data.sources.cifar import CIFAR10_MEAN, CIFAR10_STD
from engine.data.sources.folder import FolderSettings
from engine.data.transforms import compose
from models.settings import check

CPU = torch.device("cpu")
CLASSES = 4
# What is compared: a crop brought to size, mirroring, colours, erasing.
TRANSFORMS = [
    {"name": "RandomResizedCrop", "scale": [0.35, 1.0]},
    {"name": "RandomHorizontalFlip"},
    {"name": "ColorJitter", "brightness": 0.2, "contrast": 0.2},
    {"name": "RandomErasing", "p": 0.25},
]


def data_speeds(images: int, shape: tuple[int, int, int], batch_size: int, repeats: int) -> list[float]:
    """Images per second of each of `repeats` epochs of the training loader: crop by 4 pixels, flip, normalise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator)
    arrays = Arrays(pixels, torch.zeros(images, dtype=torch.int64))
    loader = TrainLoader(arrays, batch_size, AugmentSettings(crop=4, flip=True), CIFAR10_MEAN, CIFAR10_STD, seed=0)
    epoch = iter(range(repeats + 1))
    times = timed({"": lambda: sum(len(labels) for _, labels in loader.epoch(next(epoch)))}, repeats, CPU)
    return [1e3 * images / ms for ms in times[""]]


def write_photographs(folder: Path, count: int, side: int) -> None:
    """Square JPEG files, `side` pixels a side, in CLASSES folders: parts of scikit-learn's two sample photographs."""
    draw, photographs = np.random.default_rng(0), load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        top, left = draw.integers(height - side), draw.integers(width - side)
        path = folder / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + side, left : left + side]).save(path, quality=90)


def file_speeds(folder: Path, size: int, batch_size: int, workers: int, repeats: int) -> dict[str, list[float]]:
    """Images per second of epochs over JPEG files, in turns: ours, decoding anew and from images kept at `size`; and a
    plain DataLoader over torchvision's ImageFolder with the same transforms.

    Args:
        folder: of class folders.
        size: pixels that the model takes.
        workers: processes of each.
    """
    augment = check(AugmentSettings, {"transforms": TRANSFORMS}, "augment")
    loaders = {}
    for name, cache in (("decoded anew", "none"), (f"kept at {size} px", "memory")):
        data = build_data(FolderSettings(path=str(folder), size=size, cache=cache), SplitSettings(test=0, val=0), 0)
        loaders[name] = TrainLoader(data.train, batch_size, augment, data.mean, data.std, 0, workers=workers)
    chain = v2.Compose(
        [
            v2.PILToTensor(),
            compose(augment.transforms, (3, size, size), whole=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    plain = DataLoader(
        ImageFolder(str(folder), chain),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    counter = {name: iter(range(repeats + 1)) for name in loaders}
    calls = {
        name: lambda name=name: sum(len(y) for _, y in loaders[name].epoch(next(counter[name]))) for name in loaders
    }
    times = timed({**calls, "plain DataLoader": lambda: sum(len(y) for _, y in plain)}, repeats, CPU)
    for loader in loaders.values():
        loader.close()
    images = len(plain) * batch_size
    return {name: [1e3 * images / ms for ms in found] for name, found in times.items()}
