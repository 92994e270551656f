"""Wrong images on the page: the most confident mistakes of a run as small pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.data import load_raw
from engine.data.arrays import Split
from engine.data.images import open_rgb
from engine.data.settings import FileSettings
from engine.data.split import with_test_set
from engine.figures.sheet import as_picture
from engine.measure.predictions import Predictions, read_tested
from engine.study.page.run_parts import Run
from models.settings import UserError

MOST = 12  # number of wrong images of a run
SIDE = 112  # of a picture, pixels
WIDTH = 640  # of the picture of confused images, pixels


@dataclass(frozen=True)
class Wrong:
    """An image that was predicted wrongly."""

    picture: str  # a data URI
    true: str
    predicted: str
    percent: str  # the probability of the predicted class


class WrongImages:
    """Finds the wrong images of runs. A dataset of several runs in a row is loaded once."""

    def __init__(self) -> None:
        self._loaded: tuple[str, Split | None] = ("", None)

    def of(self, run: Run, classes: Sequence[str], predictions: Predictions) -> list[Wrong]:
        """Returns the most confident mistakes of a run; empty if its images are not at hand.

        Args:
            run: the run.
            classes: names.
            predictions: of its test images, from its file.
        """
        wrong = np.flatnonzero(predictions.labels != predictions.predicted)
        wrong = wrong[np.argsort(-predictions.probabilities[wrong], kind="stable")][:MOST]
        settings = run.settings.data
        if isinstance(settings, FileSettings):
            pictures = [_of_file(Path(predictions.images[i]), settings) for i in wrong]
        else:
            pictures = self._of_arrays(run, classes, wrong)
        return [
            Wrong(
                picture,
                classes[predictions.labels[i]],
                classes[predictions.predicted[i]],
                f"{100 * predictions.probabilities[i]:.0f}\N{NO-BREAK SPACE}%",
            )
            for i, picture in zip(wrong, pictures)
            if picture
        ]

    def _of_arrays(self, run: Run, classes: Sequence[str], wrong: np.ndarray) -> list[str]:
        key = run.settings.model_dump_json(include={"data": True, "split": {"test", "test_seed", "folds", "fold"}})
        try:
            if self._loaded[0] != key:
                self._loaded = (key, with_test_set(load_raw(run.settings.data), run.settings.split).test)
            images = self._loaded[1]
            read_tested(run.folder.predictions_file, images, classes)  # checks that these are the images
        except UserError:
            return [""] * len(wrong)
        return [
            data_uri(Image.fromarray(np.uint8(as_picture(image)))) for image in images.read(torch.from_numpy(wrong))
        ]


def confused_picture(file: Path) -> str:
    """Returns a run's picture of confused images as a data URI; empty if there is none."""
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return ""
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, math.ceil(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    return data_uri(picture, SIDE)


def data_uri(image: Image.Image, largest_png: int = SIDE) -> str:
    """Returns an image as a data URI: a small one or one with transparency as PNG, a larger one as JPEG.

    Args:
        image: with 8 bits per channel.
        largest_png: the largest width, pixels, of an image that becomes PNG.
    """
    kind = "png" if image.width < largest_png or image.mode == "RGBA" else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=75, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _of_file(file: Path, settings: FileSettings) -> str:
    try:
        image = open_rgb(file, settings)
    except Exception:  # whatever Pillow raises for a damaged file, or the file is gone
        return ""
    image.thumbnail((SIDE, SIDE))
    return data_uri(image, 48)
