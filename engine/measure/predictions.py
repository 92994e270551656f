"""What a model got wrong on the images that test it: each image's prediction, confusion matrix, most confused pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from engine.data import Split
from engine.data.images import below
from engine.files import replacing
from models.settings import UserError

PREDICTIONS = "predictions.csv"


COLUMNS = ("image", "label", "predicted", "probability")


@dataclass(frozen=True)
class Predictions:
    """What was said of N images: labels and predicted classes, int64 (N,); the latter's probabilities, float32 (N,).

    `images` are their paths, or numbers, where they were read back from a file.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    images: tuple[str, ...] = ()


def predictions_of(labels: Tensor, logits: Tensor) -> Predictions:
    """What a model said of N images of these labels, int64 (N,), by its logits (N, classes)."""
    predicted = logits.argmax(dim=1)
    probabilities = logits.softmax(dim=1).gather(1, predicted[:, None])[:, 0]
    return Predictions(labels.numpy(), predicted.numpy(), probabilities.numpy())


def write_predictions(folder: Path, found: Predictions, paths: Sequence[str] | None, classes: Sequence[str]) -> None:
    """Writes `predictions.csv`, a row for each image in the split's order: its path, or its number in the split from 0
    where it has none; label, predicted class, and the predicted class's probability.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    images = range(len(found.labels)) if paths is None else paths
    for image, label, predicted, probability in zip(images, found.labels, found.predicted, found.probabilities):
        rows.writerow((image, classes[label], classes[predicted], f"{probability:.6f}"))
    with replacing(folder / PREDICTIONS) as file:
        # A path that is not UTF-8 keeps its bytes.
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def read_predictions(folder: Path, classes: Sequence[str]) -> Predictions:
    """Reads back what `write_predictions` wrote.

    Raises:
        UserError: no such file, or one that this program did not write, or of other classes.
    """
    path = folder / PREDICTIONS
    number = {name: i for i, name in enumerate(classes)}
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert tuple(header) == COLUMNS
        labels, predicted = (np.array([number[row[i]] for row in rows], np.int64) for i in (1, 2))
        probabilities = np.array([row[3] for row in rows], np.float32)
        return Predictions(labels, predicted, probabilities, tuple(row[0] for row in rows))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be read, {reason}; delete {folder} and run it again") from None
    except (ValueError, KeyError, IndexError, AssertionError, csv.Error):
        said = f"{path}: not as training wrote it, for these classes"
        raise UserError(f"{said}; delete {folder} and run it again") from None


def read_tested(folder: Path, images: Split, classes: Sequence[str]) -> Predictions:
    """`read_predictions` of a run that was tested on these images, wherever their folder is now.

    Raises:
        UserError: what `read_predictions` says, or other images, or other labels.
    """
    found = read_predictions(folder, classes)
    other = images.paths is not None and below(images.paths) != below(found.images)
    if other or not np.array_equal(images.labels.numpy(), found.labels):
        raise UserError(
            f"{folder}: its test images are not those that the data has for it now; bring back the data "
            "that it was run on, or run it again"
        )
    return found
