"""Splits a dataset: into test, validation and training images, or into folds.

All splits are stratified and depend only on a seed, and copies of an image are kept together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.arrays import RawData, Split
from engine.data.keyed import SPLIT, TEST, hash64
from engine.data.settings import SplitSettings
from engine.wording import counted, few
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

NAMES = {"val": "validation", "test": "test"}  # of the parts that are held out


def with_test_set(raw: RawData, split: SplitSettings) -> RawData:
    """Returns the dataset with a test set: its own or, if it has none, one held out of its training images.

    The share split.test of each class is held out, as in `split_data`, but in an order that is a hash of
    (split.test_seed, index) and does not depend on the run's seed. Copies of an image are never separated, not even
    copies in different classes: if one of them stays in training, all do. For images with many labels, the share of all
    images is held out. The test set is empty if split.test is 0.

    With split.folds the test set is fold split.fold of `folded`, and the test set of the dataset is not used.

    Raises:
        UserError: there are folds and none is chosen, or a class is too small for them.
    """
    if split.folds:
        if split.fold is None:
            raise UserError(
                f"split.folds = {split.folds}: a run has one of them as its test set; add split.fold=0, or "
                "give a fold's own folder, such as fold0"
            )
        images, parts = folded(raw, split)
        rest, chosen = (_take(images, np.flatnonzero(of)) for of in (parts != split.fold, parts == split.fold))
        return replace(raw, train=rest, val=None, test=chosen)
    if raw.test is not None:
        return raw
    copies = _first_copies([raw.train])
    order = np.argsort(hash64(TEST, split.test_seed, copies), kind="stable")  # copies are adjacent
    held_out = order[:0]
    if split.test > 0:
        held_out = _hold_out(order, _strata(raw, raw.train), split.test, copies)
        held_out = held_out[~np.isin(copies[held_out], np.delete(copies, held_out))]
        _warn_of_classes_without(raw, held_out, f"split.test = {split.test:g}", "test")
    rest = order[~np.isin(order, held_out)]
    return replace(raw, train=_take(raw.train, rest), test=_take(raw.train, held_out))


def split_data(raw: RawData, split: SplitSettings, seed: int) -> tuple[Split, Split]:
    """Splits off validation images from a dataset that has a test set.

    The dataset's own validation split is used if there is one. Otherwise the share split.val of each class, rounded, is
    held out: at least one image, and never all. A class that cannot spare an image stays in training, and a warning
    names it. The share split.part of the other images of each class, rounded but at least one, is used for training.

    Both follow the same order of the images, which is a hash of (seed, index): runs that differ only in `part` share
    their validation images, and a smaller part is a subset of a larger one. Copies of an image within a class are kept
    together; copies across the splits of the dataset are counted in a warning and not moved. For images with many
    labels, shares are of all images, and a warning names the labels that no held-out image has.

    Returns:
        Training and validation images, each in the order of the dataset; no validation images if split.val is 0 and the
        dataset has none.
    """
    assert raw.test is not None, "see with_test_set"
    labels = _strata(raw, raw.train)
    copies = _first_copies([raw.train, *([raw.val] if raw.val is not None else []), raw.test])
    _warn_of_copies(raw, copies)
    order = np.argsort(hash64(SPLIT, seed, copies[: len(labels)]), kind="stable")  # copies are adjacent
    held_out = order[:0]
    if raw.val is None and split.val > 0:
        held_out = _hold_out(order, labels, split.val, copies)
        _warn_of_classes_without(raw, held_out, f"split.val = {split.val:g}", "validation")
    rest = order[~np.isin(order, held_out)]
    if split.part < 1:
        rest = np.concatenate([members[: _share(members, split.part)] for members in _classes(rest, labels)])
    return _take(raw.train, rest), raw.val if raw.val is not None else _take(raw.train, held_out)


def absent_parts(raw: RawData, split: SplitSettings, parts: Mapping[str, Split]) -> dict[str, str]:
    """Returns why there are no "val" or "test" images, for those of the parts that are empty.

    Args:
        raw: the dataset as its source provides it.
        split: how it was split.
        parts: what came of it.
    """
    reasons = {}
    for name in (name for name, images in parts.items() if not len(images)):
        share, own = getattr(split, name), getattr(raw, name)
        if own is not None and not split.folds:
            reasons[name] = f"the dataset's own {NAMES[name]} set is empty"
        elif share == 0:
            reasons[name] = f"split.{name} = 0"
        else:
            reasons[name] = f"split.{name} = {share:g}, but no class has an image to spare"
    return reasons


def folded(raw: RawData, split: SplitSettings) -> tuple[Split, np.ndarray]:
    """Assigns all training and validation images of a dataset to K folds.

    The sizes of any two folds differ by at most 1, in total and within each class; for images with many labels, in
    total only. Copies of an image are in the same fold, even copies in different classes: groups of copies are assigned
    first, the largest before the smaller ones, each to the fold with the fewest images of its classes. Single images
    then even out the differences. The order within a class is a hash of (split.test_seed, index) and does not depend on
    the run's seed. The labelled test images of the dataset are not used, and the log says so.

    Returns:
        The dataset's training images followed by its validation images, and the fold of each, int64 (N,) in [0, K).

    Raises:
        UserError: classes with fewer images than folds, copies counted once.
    """
    if raw.test is not None:
        log.info("split.folds = %d: the dataset's own %d test images are not used", split.folds, len(raw.test))
    images = raw.train if raw.val is None else _joined(raw.train, raw.val)
    labels, copies = _strata(raw, images), _first_copies([images])
    _demand_enough(raw, labels, copies, split.folds)
    _, group, size = np.unique(copies, return_inverse=True, return_counts=True)
    # The largest groups come first, then single images by class; the images of a group are adjacent.
    strata = np.where(size[group] > 1, -size[group], labels)
    order = np.lexsort((copies, hash64(TEST, split.test_seed, copies), strata))
    parts = np.zeros(len(images), np.int64)
    counts = np.zeros((split.folds, labels.max() + 1), np.int64)  # of each class in each part
    sizes = np.zeros(split.folds, np.int64)
    for members in np.split(order, np.flatnonzero(np.diff(copies[order])) + 1):
        part = np.lexsort((sizes, counts[:, labels[members]].sum(1)))[0]
        parts[members] = part
        sizes[part] += len(members)
        np.add.at(counts[part], labels[members], 1)
    return images, parts


def _demand_enough(raw: RawData, labels: np.ndarray, copies: np.ndarray, folds: int) -> None:
    pairs = np.unique(np.stack([labels, copies], 1), axis=0)
    classes, counts = np.unique(pairs[:, 0], return_counts=True)
    small = [(label, count) for label, count in zip(classes.tolist(), counts.tolist()) if count < folds]
    if small and not raw.task.one_class:
        raise UserError(
            f"split.folds = {folds}: only {counted(small[0][1], 'image')}, copies counted once; use fewer folds"
        )
    if small:
        names = few([f"{raw.classes[label]!r} ({count})" for label, count in small])
        least = min(count for _, count in small)
        fix = f"use split.folds={least} or less, or add images" if least > 1 else "add images, or take the classes out"
        too_small = counted(len(small), "class has", "classes have")
        raise UserError(f"split.folds = {folds}: {too_small} fewer images, copies counted once: {names}; {fix}")


def _joined(one: Split, other: Split) -> Split:
    """Concatenates two splits of the same class."""

    def both(name: str) -> Any:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, Tensor):
            return torch.cat([a, b])
        return a + b if isinstance(a, tuple) else a

    return type(one)(**{field.name: both(field.name) for field in fields(one)})


def _hold_out(order: np.ndarray, labels: np.ndarray, fraction: float, copies: np.ndarray) -> np.ndarray:
    """Returns the first images of each class in `order`, so many that copies stay together and some images remain."""
    held_out = []
    for members in _classes(order, labels):
        cuts = np.flatnonzero(np.diff(copies[members]) != 0) + 1
        if len(cuts):
            held_out.append(members[: cuts[np.abs(cuts - _share(members, fraction)).argmin()]])
    return np.concatenate(held_out) if held_out else order[:0]


def _strata(raw: RawData, images: Split) -> np.ndarray:
    """Returns the group of each image, int64 (N,); a share of every group is held out."""
    return raw.task.strata(images.labels).numpy()


def _classes(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Returns the images of each class that has any, in `order`."""
    return [order[labels[order] == label] for label in np.unique(labels[order])]


def _share(members: np.ndarray, fraction: float) -> int:
    return max(1, int(len(members) * fraction + 0.5))


def _first_copies(splits: list[Split]) -> np.ndarray:
    """Returns, for each image of all splits, the index of the first image with the same pixels, int64 (N,)."""
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
    labels = raw.train.labels
    missing = raw.task.missing(labels, labels[torch.from_numpy(held_out)], len(raw.classes)).tolist()
    if missing:
        names = ", ".join(repr(raw.classes[label]) for label in missing[:5]) + (", ..." if len(missing) > 5 else "")
        log.warning("%s: %s: %s", setting, counted(len(missing), *raw.task.missing_words).format(kind), names)


def _take(arrays: Split, indices: np.ndarray) -> Split:
    return arrays.take(torch.from_numpy(np.sort(indices)))
