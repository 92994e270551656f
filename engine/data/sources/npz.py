"""The dataset `npz`: images and labels in one NumPy archive, with the keys of MedMNIST (Yang et al., 2023)."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from engine.data.arrays import Arrays, RawData
from engine.data.check.findings import log_warnings, similar_names
from engine.data.names import differing, nfc, on_disk, twins
from engine.data.settings import ArraySettings, DataPath
from engine.data.sources.array_labels import READERS, refuse
from engine.tasks import TASKS, Task
from engine.wording import counted
from models.archives import array_sizes, available_memory, in_words
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

SPLITS = ("train", "val", "test")
KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
LAYOUT = "(N, H, W) or (N, H, W, C)"
MAX_CHANNELS = 16


class NpzSettings(ArraySettings):
    """`path` is the archive; see load_npz for its contents."""

    name: Literal["npz"] = "npz"
    path: DataPath = Field(description="the .npz file, with MedMNIST's keys")
    labels: Literal["one", "many"] | None = Field(
        None,
        description="one: each image has one class; many: any number of labels; null: one, and arrays of several "
        "columns are asked about",
    )

    @property
    def task(self) -> Task:
        return TASKS[self.labels or "one"]


def load_npz(settings: NpzSettings) -> RawData:
    """Loads {train,val,test}_{images,labels} and, optionally, class_names from an .npz archive.

    Images are uint8, (N, H, W) or (N, H, W, C), all of one size. Labels are integers, (N,) or (N, 1), from 0 to K - 1,
    or with data.labels "one" rows of zeros and a single 1, (N, K). With data.labels "many" they are 0 and 1 of any
    type, (N, K), with a column for each label, as in ChestMNIST. Without val_* a validation split is held out of the
    training set. K is the number of class_names; without them it is the number of columns, or one more than the largest
    training label, and the names are the numbers. A warning names classes without training images. Nothing is
    unpickled.

    Returns:
        Images, and labels int64 (N,), or float32 (N, K) for "many".

    Raises:
        UserError: an array is missing or wrong; the message names the file, the key, the problem and the fix.
    """
    path = on_disk(Path(settings.path))
    arrays = _read(path)
    present = [split for split in SPLITS if split != "val" or {"val_images", "val_labels"} & arrays.keys()]
    _demand(path, arrays, [f"{split}_{kind}" for split in present for kind in ("images", "labels")])
    splits = {split: _split(path, arrays, split, settings.labels) for split in present}
    train = splits["train"]
    for split, other in splits.items():
        if other.images.shape[1:] != train.images.shape[1:]:
            raise UserError(
                f"{path}: {split}_images have (C, H, W) = {tuple(other.images.shape[1:])}, train_images "
                f"{tuple(train.images.shape[1:])}; bring them to one size"
            )
    columns = _columns(path, arrays)
    classes = _classes(path, arrays.get("class_names"), train.labels, columns)
    for split, other in splits.items():
        labels = other.labels.numpy()
        if settings.task.one_class:
            rule = f"there {'is' if len(classes) == 1 else 'are'} {counted(len(classes), 'class')}, from 0"
            refuse(f"{path}: {split}_labels", labels, labels >= len(classes), rule)
    return RawData(train, splits["test"], classes, val=splits.get("val"), task=settings.task)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the archive that have one of our keys."""
    arrays: dict[str, np.ndarray] = {}
    where = f"data.path = {str(path)!r}"
    try:
        if path.is_dir() or not path.exists():
            raise UserError(f"{where}: {'is a folder' if path.is_dir() else 'not found'}; give an .npz archive")
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            keys = [k for k in (*KEYS, "class_names") if k in archive.files]
            if (size := sum(array_sizes(path, keys).values())) > (free := available_memory()):
                raise UserError(
                    f"{where}: its arrays take {in_words(size)} of memory, {in_words(free)} are free; use a machine "
                    "with more, or save the images as files, which are read as they are needed"
                )
            for key in keys:
                where = f"{path}: {key}"
                arrays[key] = archive[key]
                if not isinstance(arrays[key], np.ndarray):
                    raise ValueError("not an array")  # np.load returns the bytes of other files
    except UserError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{where}: Python objects, which are not unpickled because that can run code; "
                "save plain arrays: uint8 images, int64 labels, str names"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: not readable as .npz ({reason}); make or download it again") from None
    return arrays


def _demand(path: Path, arrays: Collection[str], keys: Iterable[str]) -> None:
    """Raises a UserError if a key is missing."""
    for key in keys:
        if key not in arrays:
            raise UserError(
                f"{path}: {key} missing; of the keys {', '.join(KEYS)} (val_* optional) it has "
                f"{', '.join(arrays) or 'none'}"
            )


def _split(path: Path, arrays: dict[str, np.ndarray], split: str, kind: str | None) -> Arrays:
    """Returns a split. Its images are taken out of `arrays`, so that those of one split at most are in memory twice."""
    images = _images(f"{path}: {split}_images", arrays.pop(f"{split}_images"))
    labels = READERS[kind](f"{path}: {split}_labels", arrays[f"{split}_labels"])
    if len(images) != len(labels):
        raise UserError(f"{path}: {len(images)} {split}_images but {len(labels)} {split}_labels; save one for each")
    return Arrays(torch.from_numpy(images), torch.from_numpy(labels))


def _images(where: str, images: np.ndarray) -> np.ndarray:
    """Checks and converts images: uint8 (N, H, W) or (N, H, W, C) -> uint8 (N, C, H, W)."""
    if images.dtype != np.uint8:
        bad = images.size - int(np.isfinite(images).sum()) if images.dtype.kind in "fc" else 0
        raise UserError(
            f"{where}: {images.dtype}{f' with {bad} values of nan or inf' if bad else ''}; "
            "save them as uint8 from 0 to 255"
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"{where}: shape {images.shape}; save them as {LAYOUT}, none of these zero")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[3] > MAX_CHANNELS:
        raise UserError(
            f"{where}: shape {images.shape} means {images.shape[3]} channels, more than {MAX_CHANNELS}; "
            f"channels come last: {LAYOUT}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _columns(path: Path, arrays: dict[str, np.ndarray]) -> int | None:
    """Returns the number of columns of labels, the same in all splits; None if they are numbers of classes."""
    shapes = {key: array.shape for key, array in arrays.items() if key.endswith("_labels")}
    widths = {key: shape[1] if len(shape) == 2 and shape[1] > 1 else None for key, shape in shapes.items()}
    for key, width in widths.items():
        if width != widths["train_labels"]:
            raise UserError(
                f"{path}: {key}: shape {shapes[key]}, train_labels {shapes['train_labels']}; save the same labels in "
                "the same order"
            )
    return widths["train_labels"]


def _classes(path: Path, names: np.ndarray | None, labels: torch.Tensor, columns: int | None) -> list[str]:
    """Returns the class names, or the numbers of the columns, or those up to the largest training label."""
    seen = set((labels.unique() if labels.ndim == 1 else labels.any(0).nonzero()[:, 0]).tolist())
    if names is None and columns is not None:
        names = np.arange(columns).astype(str)
    elif columns is not None and names.shape != (columns,):
        raise UserError(f"{path}: class_names: shape {names.shape}; save a name for each of the {columns} columns")
    if names is None:
        if max(seen) >= 2 * len(seen):
            raise UserError(
                f"{path}: train_labels: {len(seen)} different values up to {max(seen)}; "
                "number the classes from 0 to K - 1 without gaps, or save class_names"
            )
        names = np.arange(max(seen) + 1).astype(str)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{path}: class_names: {names.dtype} of shape {names.shape}; save str of shape (K,)")
    classes = names.tolist()
    if len(set(map(nfc, classes))) < len(classes):
        twice = next((f"{name!r} occurs more than once" for name in classes if classes.count(name) > 1), "")
        twice = twice or f"{differing(twins(classes)[0])} differ only in Unicode's form (NFC, NFD)"
        raise UserError(f"{path}: class_names: {twice}; each class needs a name of its own")
    log_warnings(similar_names(classes), str(path))
    if len(classes) < 2:
        raise UserError(f"{path}: {len(classes)} class; a classifier needs two or more")
    absent = [repr(name) for i, name in enumerate(classes) if i not in seen]
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning("%s: %s no training image: %s", path, counted(len(absent), "class has", "classes have"), names)
    return classes
