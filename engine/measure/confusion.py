"""Confusion matrix, accuracy by class, and the most confused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): how many images of the row's class were taken for the column's."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, float | None]:
    """The share of each class's images that is right; None for a class without images."""
    return {
        name: float(right / n) if n else None
        for name, right, n in zip(classes, matrix.diagonal(), matrix.sum(1), strict=True)
    }


@dataclass(frozen=True)
class Confused:
    """Two classes, and how many images of each were taken for the other."""

    first: int
    second: int
    as_second: int  # images of the first taken for the second
    as_first: int

    @property
    def count(self) -> int:
        return self.as_second + self.as_first


def most_confused(matrix: np.ndarray, most: int = 20) -> list[Confused]:
    """The pairs of classes with the most mistakes between them, those first; of the two the class that loses more."""
    both = np.triu(matrix + matrix.T, 1)
    rows, columns = np.nonzero(both)
    order = np.argsort(-both[rows, columns], kind="stable")[:most]
    found = []
    for a, b in zip(rows[order].tolist(), columns[order].tolist()):
        a, b = (b, a) if matrix[b, a] > matrix[a, b] else (a, b)
        found.append(Confused(a, b, int(matrix[a, b]), int(matrix[b, a])))
    return found
