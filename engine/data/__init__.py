"""The datasets that `data.name` can name, and the functions that load one and split it for a run.

A new dataset is a settings class with `name: Literal[...]`, a function, and one line in DATASETS; see docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from engine.data.arrays import Arrays, Data, RawData, Split, channel_stats
from engine.data.check.findings import Source
from engine.data.reading import read_source
from engine.data.settings import AugmentSettings, DataSettings, FileSettings, SplitSettings
from engine.data.sources.cifar import Cifar10Settings, Cifar100Settings, load_cifar10, load_cifar100
from engine.data.sources.digits import DigitsSettings, load_digits
from engine.data.sources.dtd import DtdSettings, find_dtd
from engine.data.sources.folder import FolderSettings, find_folder
from engine.data.sources.kaggle import KaggleSettings, find_kaggle
from engine.data.sources.npz import NpzSettings, load_npz
from engine.data.sources.shards import ShardSettings, find_in_shards
from engine.data.sources.table import CsvSettings, find_csv
from engine.data.split import absent_parts, split_data, with_test_set

__all__ = [
    "DATASETS",
    "Arrays",
    "AugmentSettings",
    "Data",
    "FileSettings",
    "RawData",
    "Source",
    "Split",
    "SplitSettings",
    "build_data",
    "load_raw",
]

# name -> its settings, and a function of these that returns images in memory (RawData), or image files and their labels
# (Source), which are then decoded, checked and reported in the same way for every dataset.
DATASETS: dict[str, tuple[type[DataSettings], Callable[..., RawData | Source]]] = {
    "digits": (DigitsSettings, load_digits),
    "cifar10": (Cifar10Settings, load_cifar10),
    "cifar100": (Cifar100Settings, load_cifar100),
    "npz": (NpzSettings, load_npz),
    "folder": (FolderSettings, find_folder),
    "dtd": (DtdSettings, find_dtd),
    "kaggle": (KaggleSettings, find_kaggle),
    "csv": (CsvSettings, find_csv),
    "shards": (ShardSettings, find_in_shards),
}


def check_datasets(table: Mapping[str, Any]) -> None:
    """Raises a TypeError, which says what to write, for an entry that is not a pair of settings class and function."""
    for name, entry in table.items():
        form = (
            f"write ({name.capitalize()}Settings, find_{name}), a class derived from FileSettings or ArraySettings and "
            "a function; see docs/data.md"
        )
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise TypeError(f"DATASETS[{name!r}] is {entry!r}; {form}")
        settings, function = entry
        if not (isinstance(settings, type) and issubclass(settings, DataSettings) and callable(function)):
            raise TypeError(f"DATASETS[{name!r}] is {entry!r}; {form}")
        field = settings.model_fields.get("name")
        if field is None or get_args(field.annotation) != (name,):
            raise TypeError(
                f"DATASETS[{name!r}]: {settings.__name__} needs the field name: Literal[{name!r}] = {name!r}"
            )


check_datasets(DATASETS)


def load_raw(data: DataSettings) -> RawData:
    """Loads the dataset that the settings name, with the splits that it comes with.

    Raises:
        UserError: the dataset is missing or malformed.
    """
    images = DATASETS[data.name][1](data)
    return read_source(images, data) if isinstance(images, Source) else images


def build_data(data: DataSettings, split: SplitSettings, seed: int, raw: RawData | None = None) -> Data:
    """Loads a dataset and splits it.

    Args:
        data: settings of one of DATASETS, with `size` filled in for image files.
        split: how many images to hold out for testing and validation if the dataset has no such splits, or which fold
            is the test set; and how many of the others to train on.
        seed: the seed of the validation split; the test split has a seed of its own in `split`.
        raw: the dataset, if it is already loaded.

    Returns:
        The splits, and the published mean and standard deviation of the dataset or, if there are none, those of the
        training images.

    Raises:
        UserError: the dataset is missing or malformed; or there are folds and none is chosen.
    """
    source = load_raw(data) if raw is None else raw
    raw = with_test_set(source, split)
    train, val = split_data(raw, split, seed)
    mean, std = (raw.mean, raw.std) if raw.mean is not None else channel_stats(train)
    absent = absent_parts(source, split, {"val": val, "test": raw.test})
    return Data(train, val, raw.test, raw.classes, mean, std, getattr(data, "resize", None), raw.task, absent)
