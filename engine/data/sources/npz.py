"""The dataset `npz`: images and labels in one NumPy archive, with the keys of MedMNIST (Yang et al., 2023)."""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from engine.data.arrays import Arrays, RawData
from engine.data.settings import ArraySettings, DataPath
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


def load_npz(settings: NpzSettings) -> RawData:
    """Loads {train,val,test}_{images,labels} and, optionally, class_names from an .npz archive.

    Images are uint8, (N, H, W) or (N, H, W, C), all of one size. Labels are integers, (N,) or (N, 1), from 0 to K - 1.
    Without val_* a validation split is held out of the training set. K is the number of class_names; without them it is
    one more than the largest training label, and the names are the numbers. A warning names classes without training
    images. Nothing is unpickled.

    Raises:
        UserError: an array is missing or wrong; the message names the file, the key, the problem and the fix.
    """
    path = Path(settings.path)
    arrays = _read(path)
    present = [split for split in SPLITS if split != "val" or {"val_images", "val_labels"} & arrays.keys()]
    splits = {split: _split(path, arrays, split) for split in present}
    train = splits["train"]
    for split, other in splits.items():
        if other.images.shape[1:] != train.images.shape[1:]:
            raise UserError(
                f"{path}: {split}_images have (C, H, W) = {tuple(other.images.shape[1:])}, train_images "
                f"{tuple(train.images.shape[1:])}; bring them to one size"
            )
    classes = _classes(path, arrays.get("class_names"), train.labels)
    for split, other in splits.items():
        labels = other.labels.numpy()
        _refuse(f"{path}: {split}_labels", labels, labels >= len(classes), f"there are {len(classes)} classes, from 0")
    return RawData(train, splits["test"], classes, val=splits.get("val"))


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


def _split(path: Path, arrays: dict[str, np.ndarray], split: str) -> Arrays:
    for key in (f"{split}_images", f"{split}_labels"):
        if key not in arrays:
            raise UserError(
                f"{path}: {key} missing; of the keys {', '.join(KEYS)} (val_* optional) it has "
                f"{', '.join(arrays) or 'none'}"
            )
    images = _images(f"{path}: {split}_images", arrays[f"{split}_images"])
    labels = _labels(f"{path}: {split}_labels", arrays[f"{split}_labels"])
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


def _labels(where: str, labels: np.ndarray) -> np.ndarray:
    """Checks and converts labels: integers (N,) or (N, 1) -> int64 (N,)."""
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where}: {labels.dtype}; save them as integers from 0 to K - 1")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{where}: shape {labels.shape}; save one class for each image, (N,) or (N, 1)")
    labels = labels.astype(np.int64)
    _refuse(where, labels, labels < 0, "labels go from 0 to K - 1")
    return labels


def _classes(path: Path, names: np.ndarray | None, labels: torch.Tensor) -> list[str]:
    """Returns the class names, or the numbers up to the largest training label."""
    seen = set(labels.unique().tolist())
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
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{path}: class_names: {twice!r} occurs more than once; each class needs a name of its own")
    if len(classes) < 2:
        raise UserError(f"{path}: {len(classes)} class; a classifier needs two or more")
    absent = [repr(name) for i, name in enumerate(classes) if i not in seen]
    if absent:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning("%s: %d classes have no training image: %s", path, len(absent), names)
    return classes


def _refuse(where: str, labels: np.ndarray, wrong: np.ndarray, rule: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(f"{where}: {labels[first]} at index {first} ({wrong.sum()} such); {rule}")
