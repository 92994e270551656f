"""Whether settings, data and runs go together: checks before a model is built, warnings where images may be known."""

from __future__ import annotations

import logging
from typing import Any

from engine.data import Data, build_data
from engine.runs.folder import RunFolder
from engine.runs.results import Results
from engine.settings.schema import RunSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge")

PLACES = ("path", "root", "images", "workers")  # settings of data that say where images are, and not which


def checked_data(run: RunFolder, settings: RunSettings, results: Results | None, data: Data | None) -> Data:
    """Loads the data of a run and checks that its model takes them; logs a warning if they may be known to the model.

    Args:
        run: the run folder.
        settings: its settings, possibly with overrides.
        results: what the run measured, if it has come to its end.
        data: the data, if they are loaded already.

    Raises:
        UserError: the data cannot be read, or do not fit the model.
    """
    warn_of_other_split(run, settings)
    if data is None:
        data = build_data(settings.data, settings.split, settings.seed)
        warn_of_other_data(run, settings, results, data)
    check_fits(settings, data)
    return data


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


def warn_of_other_data(run: RunFolder, settings: RunSettings, results: Results | None, data: Data) -> None:
    """Logs a warning if data read and split with the run's own settings are not those that it was trained on.

    Args:
        run: the run folder.
        settings: the settings that `data` were read with.
        results: what the run measured; None: there is nothing to compare with.
        data: the data.
    """
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
