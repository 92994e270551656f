"""`predictions.csv`: the predicted class of each test image of a run, written and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from engine.data import Split
from engine.data.images import relative_paths
from engine.data.names import placing, same_names
from engine.data.tables.cells import guarded, quoted, unguarded
from engine.files import replacing
from engine.tasks import Task
from models.settings import UserError

COLUMNS = ("image", "label", "predicted", "probability")


@dataclass(frozen=True)
class Predictions:
    """The predictions of N images with one class each.

    Attributes:
        labels: int64 (N,).
        predicted: the predicted classes, int64 (N,).
        probabilities: probabilities of the predicted classes, float32 (N,).
        images: paths, or positions in the split, if the predictions were read from a file.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    images: tuple[str, ...] = ()


def predictions_of(labels: Tensor, logits: Tensor, task: Task) -> Predictions:
    """Converts logits (N, classes) of images with labels, int64 (N,), to predictions."""
    predicted = task.chosen(logits)
    probabilities = task.probabilities(logits).gather(1, predicted[:, None])[:, 0]
    return Predictions(labels.numpy(), predicted.numpy(), probabilities.numpy())


def write_predictions(
    file: Path, predictions: Predictions, paths: Sequence[str] | None, classes: Sequence[str]
) -> None:
    """Writes a CSV with a row for each image, in the order of the split: image, label, predicted class, probability.

    A name that a spreadsheet would compute is written with an apostrophe in front, as in submissions.

    Args:
        file: the run's predictions.csv.
        predictions: the predictions.
        paths: paths of the images; None: each image is named by its position in the split, from 0.
        classes: names of the classes.

    Raises:
        UserError: the file cannot be written.
    """
    images = map(str, range(len(predictions.labels))) if paths is None else paths
    columns = (images, predictions.labels, predictions.predicted, predictions.probabilities)
    rows: list[Sequence[str]] = [COLUMNS]
    for image, label, predicted, probability in zip(*columns, strict=True):
        rows.append((image, classes[label], classes[predicted], f"{probability:.6f}"))
    text = "".join(",".join(quoted(guarded(cell)) for cell in row) + "\n" for row in rows)
    with replacing(file) as opened:
        opened.write(text.encode("utf-8", "surrogateescape"))  # a path that is not UTF-8 keeps its bytes


def read_predictions(file: Path, classes: Sequence[str]) -> Predictions:
    """Reads a file written by `write_predictions`, now or by an older version, which did not guard names.

    Raises:
        UserError: the file is missing, was not written by this program, or contains other classes.
    """
    place = placing(classes)

    def label(cell: str) -> int:
        found = place(cell)
        if found is None:
            found = place(unguarded(cell))
        if found is None:
            raise ValueError(cell)
        return found

    try:
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert tuple(header) == COLUMNS
        labels, predicted = (np.array([label(row[i]) for row in rows], np.int64) for i in (1, 2))
        probabilities = np.array([row[3] for row in rows], np.float32)
        return Predictions(labels, predicted, probabilities, tuple(unguarded(row[0]) for row in rows))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{file}: cannot be read, {reason}; delete {file.parent} and run it again") from None
    except (ValueError, IndexError, AssertionError, csv.Error):
        problem = "not in the form that training writes for these classes"
        raise UserError(f"{file}: {problem}; delete {file.parent} and run it again") from None


def read_tested(file: Path, images: Split, classes: Sequence[str]) -> Predictions:
    """Reads the predictions of a run and checks that they belong to these images, wherever their folder is now.

    Raises:
        UserError: `read_predictions` fails, or the images or their labels differ.
    """
    predictions = read_predictions(file, classes)
    moved = images.paths is not None and not same_names(
        relative_paths(images.paths), relative_paths(predictions.images)
    )
    if moved or not np.array_equal(images.labels.numpy(), predictions.labels):
        raise UserError(
            f"{file.parent}: its test images differ from those that the data has now; restore the data "
            "that it was trained on, or run it again"
        )
    return predictions
