"""Test and validation splits and the part of the training set that is used: stratified, functions of a seed alone."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from engine.data.arrays import RawData, Split
from engine.data.keyed import SPLIT, TEST, hash64
from engine.data.settings import SplitSettings

log = logging.getLogger("hybridmerge.data")


def with_test_set(raw: RawData, split: SplitSettings) -> RawData:
    """The dataset with a test set: its own as it is, or else one taken off its training images.

    The share split.test of each class is held out as split_data holds out a validation split, in an order of its own
    that is a hash of (split.test_seed, index): the run's seed has no part in it. Here copies of an image are never
    parted, not even copies in different classes: where some must train, all do. Of images with many labels the share
    of all is held out. The test set is empty if split.test is 0.
    """
    if raw.test is not None:
        return raw
    copies = _first_copies([raw.train])
    order = np.argsort(hash64(TEST, split.test_seed, copies), kind="stable")  # copies stand side by side
    held_out = order[:0]
    if split.test > 0:
        held_out = _hold_out(order, _strata(raw.train), split.test, copies)
        held_out = held_out[~np.isin(copies[held_out], np.delete(copies, held_out))]
        _warn_of_classes_without(raw, held_out, f"split.test = {split.test:g}", "test")
    rest = order[~np.isin(order, held_out)]
    return replace(raw, train=_take(raw.train, rest), test=_take(raw.train, held_out))


def split_data(raw: RawData, split: SplitSettings, seed: int) -> tuple[Split, Split]:
    """The images to train on and those to validate on, of a dataset that has a test set.

    A validation split that the dataset brings along is used as it is. Otherwise, of each class the whole number of
    images nearest to split.val times its size is held out, at least one and never all; a class that has nothing to
    spare stays in training, and a warning names it. Of what is left for training the number nearest to split.part
    times its size is used, at least one of each class.

    Both follow one order of the images, a hash of (seed, index): runs that differ only in `part` share their validation
    images, and a smaller part lies inside a larger one. Copies of an image in one class stay on one side of the
    hold-out; copies across the splits that a dataset brings along are counted in a warning and left where they are.
    Images with many labels each count as one class: shares are of all images, and a warning names the labels that no
    held-out image has.

    Returns:
        Training and validation images (none if split.val is 0 and the dataset has none), each in the dataset's order.
    """
    assert raw.test is not None, "see with_test_set"
    labels = _strata(raw.train)
    copies = _first_copies([raw.train, *([raw.val] if raw.val is not None else []), raw.test])
    _warn_of_copies(raw, copies)
    order = np.argsort(hash64(SPLIT, seed, copies[: len(labels)]), kind="stable")  # copies stand side by side
    held_out = order[:0]
    if raw.val is None and split.val > 0:
        held_out = _hold_out(order, labels, split.val, copies)
        _warn_of_classes_without(raw, held_out, f"split.val = {split.val:g}", "validation")
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


def _strata(arrays: Split) -> np.ndarray:
    """What shares are taken of, int64 (N,): the classes, or all images with many labels alike."""
    return np.zeros(len(arrays), np.int64) if arrays.multi_label else arrays.labels.numpy()


def _classes(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class that has any, in `order`."""
    return [order[labels[order] == label] for label in np.unique(labels[order])]


def _share(members: np.ndarray, fraction: float) -> int:
    return max(1, int(len(members) * fraction + 0.5))


def _first_copies(splits: list[Split]) -> np.ndarray:
    """For each image of the splits, one after the other, the index of the first with the same pixels, int64 (N,)."""
    first: dict[bytes, int] = {}
    digests = (digest for split in splits for digest in split.digests())
    return np.fromiter((first.setdefault(digest, i) for i, digest in enumerate(digests)), np.int64)


def _warn_of_copies(raw: RawData, copies: np.ndarray) -> None:
    seen = len(raw.train)
    for name, later in (("validation", raw.val), ("test", raw.test)):
        if later is not None:
            count = int((copies[seen : seen + len(later)] < seen).sum())
            seen += len(later)
            if count:
                log.warning("%d of %d %s images are copies of images in earlier splits", count, len(later), name)


def _warn_of_classes_without(raw: RawData, held_out: np.ndarray, setting: str, kind: str) -> None:
    labels = raw.train.labels.numpy()
    if raw.multi_label:
        lacking, words = np.flatnonzero(labels[held_out].sum(0) == 0), f"labels have no positive {kind} image"
    else:
        lacking, words = np.setdiff1d(labels, labels[held_out]), f"classes cannot spare a {kind} image"
    if len(lacking):
        names = ", ".join(repr(raw.classes[label]) for label in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        log.warning("%s: %d %s: %s", setting, len(lacking), words, names)


def _take(arrays: Split, indices: np.ndarray) -> Split:
    return arrays.take(torch.from_numpy(np.sort(indices)))
