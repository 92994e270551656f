"""Computes the confusion matrix, the accuracy of each class, and the most confused pairs of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns the confusion matrix, int64 (classes, classes): images of the row's class predicted as the column's.

    Args:
        labels: int64 (N,).
        predicted: int64 (N,).
        classes: number of classes.
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, float | None]:
    """Returns the fraction of each class's images that are predicted correctly; None for a class without images."""
    return {
        name: float(right / n) if n else None
        for name, right, n in zip(classes, matrix.diagonal(), matrix.sum(1), strict=True)
    }


@dataclass(frozen=True)
class Confused:
    """Two classes, and how many images of each were predicted as the other."""

    first: int
    second: int
    as_second: int  # number of images of the first class predicted as the second
    as_first: int  # the other way round

    @property
    def count(self) -> int:
        """The number of mistakes between the two classes."""
        return self.as_second + self.as_first


def most_confused(matrix: np.ndarray, most: int = 20) -> list[Confused]:
    """Returns the pairs of classes with the most mistakes between them, in descending order.

    The first class of a pair is the one with more mistakes.

    Args:
        matrix: the confusion matrix.
        most: the number of pairs to return, at most.
    """
    both = np.triu(matrix + matrix.T, 1)
    rows, columns = np.nonzero(both)
    order = np.argsort(-both[rows, columns], kind="stable")[:most]
    pairs = []
    for a, b in zip(rows[order].tolist(), columns[order].tolist()):
        a, b = (b, a) if matrix[b, a] > matrix[a, b] else (a, b)
        pairs.append(Confused(a, b, int(matrix[a, b]), int(matrix[b, a])))
    return pairs
