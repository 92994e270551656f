"""Labels in arrays: numbers of classes, or a column of 0 and 1 for each label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.wording import counted
from models.settings import UserError

ONE = "save one class for each image, (N,) or (N, 1)"


def _unasked(where: str, labels: np.ndarray) -> np.ndarray:
    """Converts labels as `_numbers` does; asks what several columns mean."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not _ones_and_zeros(labels):
            shape = f"{where}: shape {labels.shape} of other values than 0 and 1"
            raise UserError(f"{shape}; save one class for each image, (N,) or (N, 1), or 0 and 1 for each label")
        one_hot = bool((labels.astype(np.int64).sum(1) == 1).all())
        one = "with a single 1 in each row: set data.labels=one if each image has one class, "
        raise UserError(
            f"{where}: shape {labels.shape} {one if one_hot else 'of 0 and 1: set '}data.labels=many if any number of "
            "labels apply to an image"
        )
    return _numbers(where, labels)


def _one_each(where: str, labels: np.ndarray) -> np.ndarray:
    """Converts labels to int64 (N,), also from rows of zeros and a single 1, (N, K)."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not _ones_and_zeros(labels):
            raise UserError(f"{where}: shape {labels.shape} of other values than 0 and 1; {ONE}")
        count = labels.astype(np.int64).sum(1)
        if (count != 1).any():
            first, wrong = int((count != 1).argmax()), int((count != 1).sum())
            raise UserError(
                f"{where}: {counted(int(count[first]), 'label')} at index {first} "
                f"({counted(wrong, 'row has', 'rows have')} none or several); set data.labels=many if any number of "
                "labels apply to an image"
            )
        return labels.astype(np.int64).argmax(1)
    return _numbers(where, labels)


def _many_each(where: str, labels: np.ndarray) -> np.ndarray:
    """Checks and converts labels: 0 and 1 of any type, (N, K) -> float32 (N, K)."""
    if labels.ndim != 2 or labels.shape[1] < 2:
        raise UserError(
            f"{where}: shape {labels.shape}; data.labels = 'many' needs a column of 0 and 1 for each of two or more "
            "labels, (N, K); for one class per image set data.labels=one"
        )
    if not _ones_and_zeros(labels):
        wrong = ~np.isin(labels, (0, 1)) if labels.dtype.kind in "biuf" else np.ones(labels.shape, bool)
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{where}: {labels[row, column]} at index {row}, column {column} ({wrong.sum()} such); save 1 where a "
            "label applies and 0 elsewhere"
        )
    return labels.astype(np.float32)


def _ones_and_zeros(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "biuf" and bool(np.isin(labels, (0, 1)).all())


def _numbers(where: str, labels: np.ndarray) -> np.ndarray:
    """Checks and converts labels: integers (N,) or (N, 1) -> int64 (N,)."""
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where}: {labels.dtype}; save them as integers from 0 to K - 1")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(f"{where}: shape {labels.shape}; {ONE}")
    labels = labels.astype(np.int64)
    refuse(where, labels, labels < 0, "labels go from 0 to K - 1")
    return labels


def refuse(where: str, labels: np.ndarray, wrong: np.ndarray, rule: str) -> None:
    """Raises a UserError if there are wrong labels, which names the first and counts them."""
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(f"{where}: {labels[first]} at index {first} ({wrong.sum()} such); {rule}")


READERS: dict[str | None, Callable[[str, np.ndarray], np.ndarray]] = {  # by data.labels
    None: _unasked,
    "one": _one_each,
    "many": _many_each,
}
