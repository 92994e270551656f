"""Measures the training loader without a model: from memory, and from files in comparison with a plain DataLoader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from engine.data import Arrays, AugmentSettings, SplitSettings, build_data
from engine.data.augmentation.transforms import compose
from engine.data.loading.loader import TrainLoader
from engine.data.sources.cifar import CIFAR10_MEAN, CIFAR10_STD
from engine.data.sources.folder import FolderSettings
from models.settings import check
from models.timing import timed

CPU = torch.device("cpu")
CLASSES = 4  # folders of write_photographs
PLAIN = "plain DataLoader"
# The augmentation that both pipelines apply to each image.
TRANSFORMS = [
    {"name": "RandomResizedCrop", "scale": [0.35, 1.0]},
    {"name": "RandomHorizontalFlip"},
    {"name": "ColorJitter", "brightness": 0.2, "contrast": 0.2},
    {"name": "RandomErasing", "p": 0.25},
]


def memory_speeds(images: int, shape: tuple[int, int, int], batch_size: int, repeats: int) -> list[float]:
    """Measures the training loader on images in memory: crop by 4 pixels, flip, normalise.

    Args:
        images: number of random images in an epoch.
        shape: (C, H, W) of each image.
        batch_size: images of a batch.
        repeats: timed epochs.

    Returns:
        Images per second of each epoch.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator)
    arrays = Arrays(pixels, torch.zeros(images, dtype=torch.int64))
    loader = TrainLoader(arrays, batch_size, AugmentSettings(crop=4, flip=True), CIFAR10_MEAN, CIFAR10_STD, seed=0)
    epochs = iter(range(repeats + 1))
    times = timed({"epoch": lambda: sum(len(labels) for _, labels in loader.epoch(next(epochs)))}, repeats, CPU)
    return [1e3 * images / ms for ms in times["epoch"]]


def write_photographs(folder: Path, count: int, side: int) -> None:
    """Writes square JPEG files, cut out of scikit-learn's two sample photographs, into CLASSES folders.

    Args:
        folder: where the folders of the classes are created.
        count: number of files.
        side: their width and height, in pixels.
    """
    draw, photographs = np.random.default_rng(0), load_sample_images().images
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        top, left = draw.integers(height - side), draw.integers(width - side)
        path = folder / f"class {i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + side, left : left + side]).save(path, quality=90)


def file_speeds(folder: Path, size: int, batch_size: int, workers: int, repeats: int) -> dict[str, list[float]]:
    """Measures epochs over JPEG files with our loader and with a plain DataLoader.

    Our loader decodes files in every epoch, or once. The plain DataLoader reads torchvision's ImageFolder and applies
    the same augmentation.

    Args:
        folder: holds a folder of images for each class.
        size: height and width that the images are resized to, in pixels.
        batch_size: images of a batch.
        workers: processes of each loader.
        repeats: timed epochs of each.

    Returns:
        Images per second of each epoch; the plain DataLoader's under PLAIN.
    """
    augment = check(AugmentSettings, {"transforms": TRANSFORMS}, "augment")
    loaders = {}
    for name, cache in (("decoded anew", "none"), (f"kept at {size} px", "memory")):
        data = build_data(FolderSettings(path=str(folder), size=size, cache=cache), SplitSettings(test=0, val=0), 0)
        loaders[name] = TrainLoader(data.train, batch_size, augment, data.mean, data.std, 0, workers=workers)
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            compose(augment.transforms, (3, size, size), whole=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    plain = DataLoader(
        ImageFolder(str(folder), transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    epochs = {name: iter(range(repeats + 1)) for name in loaders}
    calls = {
        name: lambda name=name, loader=loader: sum(len(labels) for _, labels in loader.epoch(next(epochs[name])))
        for name, loader in loaders.items()
    }
    times = timed({**calls, PLAIN: lambda: sum(len(labels) for _, labels in plain)}, repeats, CPU)
    for loader in loaders.values():
        loader.close()
    images = len(plain) * batch_size
    return {name: [1e3 * images / ms for ms in milliseconds] for name, milliseconds in times.items()}
