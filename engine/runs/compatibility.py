"""Checks that settings, data and a run fit together, and warns if a model may have seen its test images."""

from __future__ import annotations

import logging
from typing import Any

from engine.data import Data, build_data
from engine.runs.folder import RunFolder
from engine.runs.records.results import Results
from engine.settings.schema import RunSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge")

PLACES = ("path", "root", "images", "workers")  # settings of data that say where images are, not which they are


def checked_data(run: RunFolder, settings: RunSettings, results: Results | None, data: Data | None) -> Data:
    """Loads the data of a run and checks that its model accepts them; warns if the model may have seen test images.

    Args:
        run: the run folder.
        settings: its settings, possibly with overrides.
        results: the run's results, if it is finished.
        data: the data, if they are already loaded.

    Raises:
        UserError: the data cannot be read, or do not fit the model.
    """
    warn_of_other_split(run, settings)
    if data is None:
        data = build_data(settings.data, settings.split, settings.seed)
        warn_of_other_data(run, settings, results, data)
    check_fits(settings, data, trained=True)
    return data


def check_fits(settings: RunSettings, data: Data, *, trained: bool = False) -> None:
    """Checks that the model accepts the data's images and has an output for each of their classes.

    Args:
        settings: of the run.
        data: its data.
        trained: whether the model has been trained, so that its number of classes cannot be changed.

    Raises:
        UserError: the model does not, or the metrics cannot be computed on the validation or test images.
    """
    data.task.check_measurable(data.classes, {"val": data.val.labels, "test": data.test.labels})
    channels, height, width = data.shape
    needed = {"in_chans": channels, "img_size": height, "num_classes": len(data.classes)}
    if height != width:
        raise UserError(f"data.name = {settings.data.name!r}: images are {height} x {width}; models take square ones")
    for key, value in needed.items():
        current = getattr(settings.model, key)
        if current != value:
            fix = f"set model.{key}={value}"
            if trained and key == "num_classes":
                fix = "the model was trained on others: restore its data, or train again under another name="
            raise UserError(f"model.{key} = {current}: the data has {value}; {fix}")


def same_images(first: RunSettings, second: RunSettings) -> bool:
    """Returns whether two runs take their images from the same dataset in the same place."""
    keys = ("name", "path", "root")
    return all(getattr(first.data, key, None) == getattr(second.data, key, None) for key in keys)


def test_set_of(settings: RunSettings) -> list[Any]:
    """Returns the settings that decide which images of a dataset are the test set."""
    keys = ("test", "test_seed", "folds", "fold")
    return [getattr(settings.data, "partition", None), *(getattr(settings.split, key) for key in keys)]


def warn_of_other_split(run: RunFolder, settings: RunSettings) -> None:
    """Logs a warning if `settings` split the run's dataset differently than in training."""
    stored = run.settings
    if stored.data.name == settings.data.name and _splits_of(stored) != _splits_of(settings):
        certainty = "has" if same_images(stored, settings) else "may have"
        log.warning("%s: the split differs from training: the model %s seen images that test it now", run, certainty)


def warn_of_other_data(run: RunFolder, settings: RunSettings, results: Results | None, data: Data) -> None:
    """Logs a warning if data that were read and split with the run's own settings differ from its training data.

    Args:
        run: the run folder.
        settings: the settings with which `data` were read.
        results: the run's results; None: there is nothing to compare with.
        data: the data.
    """
    if results is None or _reading_of(run.settings) != _reading_of(settings):
        return
    if results.data_sha256 not in (None, data.fingerprint()):
        log.warning(
            "%s: was trained on other images, labels or pixels than those read now; the model may have seen images "
            "that test it",
            run,
        )


def _reading_of(settings: RunSettings) -> list[Any]:
    """Returns the settings that determine which data are read, wherever they are stored."""
    return [settings.data.model_dump(exclude=set(PLACES)), settings.split, settings.seed]


def _splits_of(settings: RunSettings) -> list[Any]:
    """Returns the settings that determine the test and the validation images."""
    return [*test_set_of(settings), settings.split.val, settings.seed if settings.split.val else None]
