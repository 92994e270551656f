"""Datasets: images in memory, split, augmented and normalised.

A new one is a settings class with `name: Literal[...]`, a function that loads it, and one line in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.data.arrays import Arrays, Data, RawData, Split, channel_stats
from engine.data.settings import AugmentSettings, FileSettings, SplitSettings
from engine.data.sources.cifar import Cifar10Settings, Cifar100Settings, load_cifar10, load_cifar100
from engine.data.sources.digits import DigitsSettings, load_digits
from engine.data.sources.dtd import DtdSettings, load_dtd
from engine.data.sources.folder import FolderSettings, load_folder
from engine.data.sources.kaggle import KaggleSettings, load_kaggle
from engine.data.sources.npz import NpzSettings, load_npz
from engine.data.sources.table import CsvSettings, load_csv
from engine.data.split import split_data, with_test_set
from models.settings import Settings

__all__ = [
    "DATASETS",
    "Arrays",
    "AugmentSettings",
    "Data",
    "FileSettings",
    "RawData",
    "Split",
    "SplitSettings",
    "build_data",
    "load_raw",
]

DATASETS: dict[str, tuple[type[Settings], Callable[..., RawData]]] = {
    "digits": (DigitsSettings, load_digits),
    "cifar10": (Cifar10Settings, load_cifar10),
    "cifar100": (Cifar100Settings, load_cifar100),
    "npz": (NpzSettings, load_npz),
    "folder": (FolderSettings, load_folder),
    "dtd": (DtdSettings, load_dtd),
    "kaggle": (KaggleSettings, load_kaggle),
    "csv": (CsvSettings, load_csv),
}


def load_raw(data: Settings) -> RawData:
    """The dataset that the settings name, as its source gives it."""
    return DATASETS[data.name][1](data)


def build_data(data: Settings, split: SplitSettings, seed: int, raw: RawData | None = None) -> Data:
    """Loads a dataset and splits it.

    Args:
        data: the settings of one of DATASETS; those of image files have a size by now.
        split: what is held out for test and validation where the dataset does not say, or which fold is the test set,
            and which part trains.
        seed: of the validation split; the test set has its own.
        raw: the dataset, where it is loaded already.

    Returns:
        The splits, and the mean and standard deviation that the dataset has published, or else those of the images
        that train.

    Raises:
        UserError: the dataset is not there, or not what it should be; folds, but not which of them.
    """
    raw = with_test_set(load_raw(data) if raw is None else raw, split)
    train, val = split_data(raw, split, seed)
    mean, std = (raw.mean, raw.std) if raw.mean is not None else channel_stats(train)
    return Data(train, val, raw.test, raw.classes, mean, std, getattr(data, "resize", None), raw.task)
