"""What a model got wrong on the images that test it: each image's prediction, confusion matrix, most confused pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from engine.data import Split
from engine.data.images import below
from engine.gallery import as_picture, shown
from engine.run import replacing
from engine.tracking import Tracker
from models.settings import UserError

PREDICTIONS = "predictions.csv"
COLUMNS = ("image", "label", "predicted", "probability")
WRITTEN = 30  # classes up to which the numbers stand in the confusion matrix
NAMED = 150  # classes up to which their names stand beside it
LETTERS = 24  # of a name beside the confusion matrix
PAIRS, EXAMPLES = 8, 6  # most confused pairs that are drawn, and images of each


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
        raise UserError(f"{folder}: its test images are not those that the data has for it now; bring back the data "
                        "that it was run on, or run it again")  # fmt: skip
    return found


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


def draw(folder: Path, tracker: Tracker, step: int, tag: str, figure: Figure) -> None:
    """Draws a figure once, into TensorBoard under `tag` and into the folder as a PNG named after the tag's end.

    Raises:
        UserError: it cannot be written.
    """
    tracker.figure(step, tag, figure)
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # what the tracker has drawn
    with replacing(folder / f"{tag.rpartition('/')[2]}.png") as file:
        Image.fromarray(pixels).save(file, format="png")


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix: a row for each true class, coloured by the share of its images that each class was said
    for, by its square root, so that single mistakes are seen; with numbers for few classes, with names for some,
    without either for many.

    Args:
        matrix: int64 (K, K), of images; rows are true.
        classes: K names.
        title: above it.
    """
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    named = count <= NAMED
    side = max(3.0, min(0.42 * count, 0.115 * count + 3.2)) if named else 9.0  # inches
    figure = Figure(figsize=(side + 2.2, side + 1.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if named:
        size = 8 if count <= WRITTEN else 5
        names = [shown(name, LETTERS) for name in classes]
        axes.set_xticks(range(count), names, fontsize=size, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        axes.tick_params(length=2)
    if WRITTEN < count <= NAMED:  # lines that lead from a name to its cells
        axes.set_xticks(np.arange(-0.5, count), minor=True)
        axes.set_yticks(np.arange(-0.5, count), minor=True)
        axes.grid(which="minor", color="0.9", lw=0.3)
        axes.tick_params(which="minor", length=0)
    if count <= WRITTEN:
        for row, column in zip(*np.nonzero(matrix)):
            colour = "white" if shares[row, column] > 0.4 else "black"
            number = int(matrix[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40, pad=0.01)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def confused_figure(
    pairs: Sequence[Confused], found: Predictions, images: Split, classes: Sequence[str], title: str
) -> Figure:
    """Draws the most confused pairs, a row for each: images of one class that were taken for the other, those with the
    highest probability first, as many of each direction as there is room for.

    Args:
        pairs: as `most_confused` gives them; the first few are drawn.
        found: what was said of each image.
        images: the N images, in that order.
        classes: the names.
        title: above it.
    """
    pairs, rows = pairs[:PAIRS], max(1, len(pairs[:PAIRS]))
    width, height = 1.4 * EXAMPLES, 1.85 * rows + 0.5  # inches
    figure = Figure(figsize=(width, height), dpi=130)
    figure.suptitle(title if pairs else f"{title}: none", y=1 - 0.1 / height, va="top", fontsize=10, parse_math=False)
    grid = figure.subplots(rows, EXAMPLES, squeeze=False)  # laid out by hand: ten times as fast as by constraints
    figure.subplots_adjust(0.01, 0.2 / height, 0.99, 1 - 0.75 / height, wspace=0.08, hspace=0.45)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, pair in zip(grid, pairs):
        chosen = _examples(pair, found)
        for axes, picture, i in zip(row, images.read(torch.from_numpy(chosen)), chosen):
            axes.imshow(as_picture(picture), cmap="gray", vmin=0, vmax=255)
            said, true = (shown(classes[of[i]], 18) for of in (found.predicted, found.labels))
            axes.set_title(f"{true}\nas {said}", fontsize=7, parse_math=False)
            axes.text(0.5, -0.02, f"{100 * found.probabilities[i]:.0f} %", transform=axes.transAxes, ha="center",
                      va="top", fontsize=6, color="0.35")  # fmt: skip
    return figure


def _examples(pair: Confused, found: Predictions) -> np.ndarray:
    """Positions of mistakes between the pair, int64, at most EXAMPLES: first those of the class that loses more."""
    sides = []
    for true, said in ((pair.first, pair.second), (pair.second, pair.first)):
        wrong = np.flatnonzero((found.labels == true) & (found.predicted == said))
        sides.append(wrong[np.argsort(-found.probabilities[wrong], kind="stable")])
    room = max(EXAMPLES // 2, EXAMPLES - len(sides[1]))
    first = sides[0][:room]
    return np.concatenate([first, sides[1][: EXAMPLES - len(first)]])
