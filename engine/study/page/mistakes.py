"""The mistakes of runs on the page: confusion matrices, and wrong images as small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.measure.confusion import confusion_matrix, most_confused
from engine.measure.predictions import Predictions, read_predictions
from engine.study.page.run_parts import Run
from engine.study.page.wrong import Wrong, WrongImages, confused_picture, data_uri
from engine.wording import counted
from models.settings import UserError

WRITTEN = 20  # largest number of classes whose matrix is a table of numbers; larger ones are pictures
PAIRS = 8  # number of confused pairs that are listed below a picture
PICTURES = 2_500_000  # bytes that the pictures of all runs together may have
BLUE = (37, 99, 235)


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix."""

    count: int
    shade: float  # 0 to 1: the square root of its share of the true class, so that single mistakes are visible


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of a run on its test images.

    Attributes:
        run: the run.
        classes: names.
        cells: the confusion matrix with a row for each true class; empty for more than WRITTEN classes.
        matrix: for more classes, a data URI of the matrix with a pixel for each cell; otherwise empty.
        pairs: for more classes, the most confused pairs, in words.
        wrong: the most confident mistakes, where the image files are still in their place.
        picture: a data URI of the run's picture of confused images, where they are not; or empty.
    """

    run: Run
    classes: list[str]
    cells: list[list[Cell]]
    matrix: str
    pairs: list[str]
    wrong: list[Wrong]
    picture: str

    @property
    def score(self) -> str:
        """The run's accuracy in words."""
        results = self.run.results
        return f"{100 * results.test_score:.2f} % of {counted(results.test_images, 'test image')}"


def mistakes_of(runs: Sequence[Run]) -> list[Mistakes]:
    """Returns the mistakes of the runs that recorded them: those whose images have one class each.

    When their pictures have PICTURES bytes together, the runs that follow get none.
    """
    found, room, images = [], PICTURES, WrongImages()
    for run in runs:
        classes = [*(run.results.class_accuracy or {})]
        try:
            predictions = read_predictions(run.folder.predictions_file, classes)
        except UserError:
            continue
        made = _mistakes(run, classes, predictions, images if room > 0 else None)
        room -= len(made.picture) + len(made.matrix) + sum(len(image.picture) for image in made.wrong)
        found.append(made)
    return found


def _mistakes(run: Run, classes: list[str], predictions: Predictions, images: WrongImages | None) -> Mistakes:
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    shades = np.sqrt(matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    small = len(classes) <= WRITTEN
    cells = [[Cell(int(n), float(shade)) for n, shade in zip(*row)] for row in zip(matrix, shades)] if small else []
    wrong = images.of(run, classes, predictions) if images else []
    return Mistakes(
        run=run,
        classes=classes,
        cells=cells,
        matrix="" if small or not images else _matrix_picture(shades),
        pairs=[] if small else _pairs(matrix, classes),
        wrong=wrong,
        picture="" if wrong or not images else confused_picture(run.folder.confused_picture),
    )


def _pairs(matrix: np.ndarray, classes: Sequence[str]) -> list[str]:
    return [
        f"{classes[true]} as {classes[predicted]}: {counted(count, 'image')}"
        for pair in most_confused(matrix, PAIRS)
        for true, predicted, count in (
            (pair.first, pair.second, pair.as_second),
            (pair.second, pair.first, pair.as_first),
        )
        if count
    ][:PAIRS]


def _matrix_picture(shades: np.ndarray) -> str:
    """Draws a matrix with a pixel for each cell: blue, and the less it is shaded, the more transparent."""
    pixels = np.empty((*shades.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = BLUE, np.rint(255 * shades)
    return data_uri(Image.fromarray(pixels))
