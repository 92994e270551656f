"""Restores a trained model from a run folder: `load_run` with the run's data, `load_model` without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from engine.data import Data
from engine.machine import pick_device
from engine.runs.checkpoints.weights import trained_model
from engine.runs.compatibility import checked_data
from engine.runs.folder import RunFolder, Which
from engine.runs.records.results import Results
from engine.settings.schema import RunSettings
from models.interface import merge_settings
from models.settings import UserError


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run, without the run's data.

    Attributes:
        run: the run folder.
        settings: the settings from which the model was built, with overrides, and with a budget solved.
        model: the model with a checkpoint's weights, on its device.
        classes: names, in the order of the logits.
        mean: mean of each channel of the training images, for pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        results: the run's results; None if it is not finished.
        as_trained: whether merging is the same as in training.
    """

    run: RunFolder
    settings: RunSettings
    model: nn.Module
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    results: Results | None
    as_trained: bool


@dataclass(frozen=True)
class FinishedRun(TrainedModel):
    """The model of a run and the run's data, normalised by the model's mean and standard deviation."""

    data: Data


def load_run(
    folder: RunFolder | str | Path, overrides: Iterable[str] = (), which: Which = "best", data: Data | None = None
) -> FinishedRun:
    """Restores a run: its settings, its data, and its model with the weights of a checkpoint.

    Args:
        folder: the run folder.
        overrides: changes to its settings, such as "merge.r=4". Merging may differ from training.
        which: the checkpoint, best.pt or last.pt.
        data: the run's data, if they are already loaded.

    Raises:
        UserError: this is not a run folder, or it is a folder of all folds; or settings, data and weights do not fit
            together.
    """
    run, overrides = RunFolder.at(folder), tuple(overrides)
    settings, results = single_run_settings(run, overrides), run.read_results()
    data = checked_data(run, settings, results, data)
    model, state = trained_model(run, settings, which, data.classes)
    if "mean" in state:  # an older version always normalised by the data's own statistics
        data = replace(data, mean=tuple(state["mean"]), std=tuple(state["std"]))
    return FinishedRun(
        run=run,
        settings=settings,
        model=model.to(pick_device(settings.device)),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        results=results,
        as_trained=merges_as_trained(run, overrides),
        data=data,
    )


def load_model(folder: RunFolder | str | Path, overrides: Iterable[str] = ()) -> TrainedModel:
    """Restores the model of a run with the weights of best.pt. The run's data are not needed.

    Args:
        folder: the run folder.
        overrides: changes to its settings, as for `load_run`.

    Raises:
        UserError: this is not a run folder, or it is a folder of all folds; the run is of an older version that did not
            store the mean of its images; or settings and weights do not fit together.
    """
    run, overrides = RunFolder.at(folder), tuple(overrides)
    settings = single_run_settings(run, overrides)
    model, state = trained_model(run, settings)
    if "mean" not in state:
        raise UserError(
            f"{run.checkpoint('best')}: written by an older version, without the mean and standard deviation of its "
            "training images; train it again"
        )
    return TrainedModel(
        run=run,
        settings=settings,
        model=model.to(pick_device(settings.device)),
        classes=state["classes"],
        mean=tuple(state["mean"]),
        std=tuple(state["std"]),
        results=run.read_results(),
        as_trained=merges_as_trained(run, overrides),
    )


def single_run_settings(run: RunFolder, overrides: tuple[str, ...]) -> RunSettings:
    """Returns the settings of a single run, and sets torch's number of threads to theirs.

    Raises:
        UserError: this is not a run folder, or it is a folder of all folds.
    """
    settings = run.solved_settings_with(overrides)
    if run.holds_folds:
        raise UserError(
            f"{run}: holds {run.settings.split.folds} folds, each a run of its own; give one of them, such as "
            f"{run.fold(0)}"
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return settings


def merges_as_trained(run: RunFolder, overrides: tuple[str, ...]) -> bool:
    """Returns whether the settings with overrides merge as in the run's training."""
    trained, changed = (merge_settings(s.model) for s in (run.settings, run.settings_with(overrides)))
    return trained == changed
