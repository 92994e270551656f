"""The validation split and the part of the training set that is used: stratified, and a function of the seed alone."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import torch

from engine.data.arrays import Arrays, RawData
from engine.data.keyed import SPLIT, hash64
from engine.data.settings import SplitSettings

log = logging.getLogger("hybridmerge.data")


def split_data(raw: RawData, split: SplitSettings, seed: int) -> tuple[Arrays, Arrays]:
    """The images to train on and those to validate on.

    A validation split that the dataset brings along is used as it is. Otherwise, of each class the whole number of
    images nearest to split.val times its size is held out, at least one and never all; a class that has nothing to
    spare stays in training, and a warning names it. Of what is left for training the number nearest to split.part
    times its size is used, at least one of each class.

    Both follow one order of the images, a hash of (seed, index): runs that differ only in `part` share their validation
    images, and a smaller part lies inside a larger one. Copies of an image in one class stay on one side of the
    hold-out; copies across the splits that a dataset brings along are counted in a warning and left where they are.

    Returns:
        Training and validation images (none if split.val is 0 and the dataset has none), each in the dataset's order.
    """
    labels = raw.train.labels.numpy()
    copies = _first_copies([raw.train, *([raw.val] if raw.val is not None else []), raw.test])
    _warn_of_copies(raw, copies)
    order = np.argsort(hash64(SPLIT, seed, copies[: len(labels)]), kind="stable")  # copies stand side by side
    held_out = order[:0]
    if raw.val is None and split.val > 0:
        held_out = _hold_out(order, labels, split.val, copies)
        _warn_of_classes_without(raw, held_out, split.val)
    rest = order[~np.isin(order, held_out)]
    if split.part < 1:
        rest = np.concatenate([members[: _share(members, split.part)] for members in _classes(rest, labels)])
    return _take(raw.train, rest), raw.val if raw.val is not None else _take(raw.train, held_out)


def _hold_out(order: np.ndarray, labels: np.ndarray, fraction: float, copies: np.ndarray) -> np.ndarray:
    """The first images of each class in `order`, cut where no copies are parted and some remain."""
    held_out = []
    for members in _classes(order, labels):
        cuts = np.flatnonzero(np.diff(copies[members]) != 0) + 1
        if len(cuts):
            held_out.append(members[: cuts[np.abs(cuts - _share(members, fraction)).argmin()]])
    return np.concatenate(held_out) if held_out else order[:0]


def _classes(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class that has any, in `order`."""
    return [order[labels[order] == label] for label in np.unique(labels[order])]


def _share(members: np.ndarray, fraction: float) -> int:
    return max(1, int(len(members) * fraction + 0.5))


def _first_copies(splits: list[Arrays]) -> np.ndarray:
    """For each image of the splits, one after the other, the index of the first with the same pixels, int64 (N,)."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(image, digest_size=16).digest() for split in splits for image in split.images.numpy())
    return np.fromiter((first.setdefault(digest, i) for i, digest in enumerate(digests)), np.int64)


def _warn_of_copies(raw: RawData, copies: np.ndarray) -> None:
    seen = len(raw.train)
    for name, later in (("validation", raw.val), ("test", raw.test)):
        if later is not None:
            count = int((copies[seen : seen + len(later)] < seen).sum())
            seen += len(later)
            if count:
                log.warning("%d of %d %s images are copies of images in earlier splits", count, len(later), name)


def _warn_of_classes_without(raw: RawData, held_out: np.ndarray, fraction: float) -> None:
    labels = raw.train.labels.numpy()
    lacking = [repr(raw.classes[label]) for label in np.setdiff1d(labels, labels[held_out])]
    if lacking:
        names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        log.warning("split.val = %g: %d classes cannot spare a validation image: %s", fraction, len(lacking), names)


def _take(arrays: Arrays, indices: np.ndarray) -> Arrays:
    return arrays.take(torch.from_numpy(np.sort(indices)))
