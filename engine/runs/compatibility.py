"""Whether settings, data and runs go together: checks before a model is built, warnings where images may be known."""

from __future__ import annotations

import logging
from typing import Any

from engine.data import Data
from engine.runs.folder import RunFolder
from engine.settings.schema import RunSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge")

PLACES = ("path", "root", "images", "workers")  # settings of data that say where images are, and not which


def check_fits(settings: RunSettings, data: Data) -> None:
    """Checks that the model takes the data's images and has an output for each of their classes.

    Raises:
        UserError: it does not, or the metrics cannot be computed on the validation or test images.
    """
    data.task.check_measurable(data.classes, {"val": data.val.labels, "test": data.test.labels})
    channels, height, width = data.shape
    needed = {"in_chans": channels, "img_size": height, "num_classes": len(data.classes)}
    if height != width:
        raise UserError(f"data.name = {settings.data.name!r}: images are {height} x {width}; models take square ones")
    for key, value in needed.items():
        current = getattr(settings.model, key)
        if current != value:
            raise UserError(f"model.{key} = {current}: the data has {value}; set model.{key}={value}")


def check_classes(checkpoint_classes: list[str], data: Data, file: str) -> None:
    """Checks that a checkpoint was trained on the data's classes, in the same order.

    Args:
        checkpoint_classes: the names that the checkpoint holds.
        data: whose classes are compared.
        file: the checkpoint, for the error.

    Raises:
        UserError: the classes differ.
    """
    if checkpoint_classes != data.classes:
        trained, present = _some(checkpoint_classes), _some(data.classes)
        raise UserError(f"{file}: trained on classes {trained}; the data has {present}")


def same_images(first: RunSettings, second: RunSettings) -> bool:
    """Whether two runs take their images from the same dataset in the same place."""
    keys = ("name", "path", "root")
    return all(getattr(first.data, key, None) == getattr(second.data, key, None) for key in keys)


def test_set_of(settings: RunSettings) -> list[Any]:
    """Returns the settings that decide which images of a dataset are the test set."""
    keys = ("test", "test_seed", "folds", "fold")
    return [getattr(settings.data, "partition", None), *(getattr(settings.split, key) for key in keys)]


def warn_of_other_split(run: RunFolder, settings: RunSettings) -> None:
    """Logs a warning if `settings` split the run's dataset otherwise than in training."""
    stored = run.settings
    if stored.data.name == settings.data.name and _splits_of(stored) != _splits_of(settings):
        certainty = "has" if same_images(stored, settings) else "may have"
        log.warning("%s: the split is not that of training: the model %s seen images that test it now", run, certainty)


def warn_of_other_data(run: RunFolder, settings: RunSettings, data: Data) -> None:
    """Logs a warning if data read and split with the run's own settings are not those that it was trained on.

    Args:
        run: a run that may have come to its end; if not, there is nothing to compare with.
        settings: the settings that `data` were read with.
        data: the data.
    """
    results = run.read_results()
    if results is None or _reading_of(run.settings) != _reading_of(settings):
        return
    if results.data_sha256 not in (None, data.fingerprint()):
        log.warning(
            "%s: was run on other images, labels or pixels than are read now; the model may have seen images that "
            "test it",
            run,
        )


def _reading_of(settings: RunSettings) -> list[Any]:
    """The settings that decide what is read, wherever it lies."""
    return [settings.data.model_dump(exclude=set(PLACES)), settings.split, settings.seed]


def _splits_of(settings: RunSettings) -> list[Any]:
    """The settings that decide which images test and which validate."""
    return [*test_set_of(settings), settings.split.val, settings.seed if settings.split.val else None]


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
