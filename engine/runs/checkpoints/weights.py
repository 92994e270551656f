"""Loads weights into models: those that a run starts from, and those in its checkpoints.

If a run trains only a part of its model (`finetune.mode` head or lora), its checkpoints contain only that part. The
rest is loaded from the weights that the run started from; the checkpoint has a digest of them, so that different
weights are detected.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.data import Data
from engine.data.names import same_names
from engine.machine import seed_step
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.seal import verify
from engine.runs.edited import recorded
from engine.runs.folder import RunFolder, Which
from engine.settings.schema import RunSettings
from models.builders import build
from models.finetune import Tuning, frozen_state
from models.lora import merge_lora
from models.settings import UserError
from models.settings.zoo import normalisation
from models.weights import load_weights as load_weights_from
from models.weights.report import Report

log = logging.getLogger("hybridmerge")

LEARNED_TOKENS = re.compile(r"\bmerg(e|ing\.\d+)\.pooling\.")  # in names of weights: what a merging method learned

CheckpointState = dict[str, Any]  # as returned by `checkpoint.load`


def built(settings: RunSettings) -> nn.Module:
    """Builds the model of the settings with initial weights drawn from the run's seed."""
    seed_step(settings.seed, 0)
    return build(settings.model).to(memory_format=torch.channels_last)


def start_weights(model: nn.Module, settings: RunSettings) -> None:
    """Loads the weights named by `model.weights`, if any, and logs which of them fit.

    Raises:
        UserError: as of `load_start`.
    """
    report = load_start(model, settings)
    for line in [] if report is None else report.lines():
        log.info(line)


def load_start(model: nn.Module, settings: RunSettings) -> Report | None:
    """Loads the weights named by `model.weights`; returns which of them fit, or None where none are named.

    Raises:
        UserError: the weights cannot be read, or none of them fits.
    """
    source = settings.model.weights
    if source is None:
        return None
    if Path(source).is_file():
        verify(Path(source))
    run = RunFolder(source)
    whole = run.is_run and run.checkpoint("best").is_file()
    heads = _trained_heads(Path(source))
    _check_heads(settings, heads)
    report = load_weights_from(model, source, _all_weights(run) if whole else None)
    if heads is not None:
        report.caveats = []  # our own run says what files of weights do not
    return report


def _trained_heads(source: Path) -> int | None:
    """Returns the number of attention heads with which a run trained its weights; None if no run's or not known.

    The checkpoint says it, wherever it was copied to; for one of an older version, the settings in its folder.

    Args:
        source: a run folder, or a file of weights.
    """
    run = RunFolder(source if source.is_dir() else source.parent)
    found = recorded(run.checkpoint("best") if source.is_dir() else source).get("model.num_heads")
    if found is None and run.is_run:
        found = getattr(run.settings.model, "num_heads", None)
    return found


def _check_heads(settings: RunSettings, theirs: int | None) -> None:
    """Raises a UserError if the run whose weights are loaded has another number of attention heads.

    The weights of any number of heads have the same shapes.
    """
    own = getattr(settings.model, "num_heads", None)
    if own is not None and theirs is not None and own != theirs:
        raise UserError(
            f"model.num_heads = {own}: {settings.model.weights} was trained with {theirs}, with {own} its weights "
            f"compute something else; use model.num_heads={theirs}"
        )


def _all_weights(run: RunFolder) -> dict[str, Tensor]:
    """Returns all of a run's best weights, even if its checkpoint contains only the part that was trained."""
    state = checkpoint.load(run.checkpoint("best"), checkpoint.WEIGHTS)
    if not _trains_a_part(run.settings):
        weights: dict[str, Tensor] = state["model"]
        return weights
    return _rebuilt(run.solved_settings, run.settings, state, run.checkpoint("best")).state_dict()


def trained_model(
    run: RunFolder, settings: RunSettings, which: Which = "best", data_classes: list[str] | None = None
) -> tuple[nn.Module, CheckpointState]:
    """Builds the model of a run with the weights of a checkpoint, on the CPU.

    Args:
        run: the run folder.
        settings: its settings with a budget solved, possibly with different merging.
        which: the checkpoint, "best" or "last".
        data_classes: class names that the checkpoint must have, in this order; None: any.

    Returns:
        The model, and the checkpoint.

    Raises:
        UserError: the checkpoint cannot be read or has other classes or another model's weights, or the weights that
            the run started from have changed.
    """
    file = run.checkpoint(which)
    state = checkpoint.load(file, checkpoint.WEIGHTS)
    if data_classes is not None:
        check_classes(state["classes"], data_classes, file)
    if not _trains_a_part(settings):
        model = built(settings)
        checkpoint.load_model_state(model, _for_merging_of(model, state["model"], file), str(file))
        return model, state
    stored = run.solved_settings  # adapters belong to the model as it was trained
    model = _rebuilt(stored, settings, state, file)
    if settings.model == stored.model:
        return model, state
    changed = built(settings)
    checkpoint.load_model_state(changed, _for_merging_of(changed, model.state_dict(), file), str(file))
    return changed, state


def _for_merging_of(model: nn.Module, weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Returns a run's weights without what its merging learned, where the model merges otherwise or not at all.

    Raises:
        UserError: the model needs what the run has not learned: another method, or other numbers of tokens.
    """
    needed = {name: value.shape for name, value in model.state_dict().items() if LEARNED_TOKENS.search(name)}
    if any(name not in weights or weights[name].shape != shape for name, shape in needed.items()):
        raise UserError(
            f"{file}: merge.method or merge.r is not that of training, and the method merges as it has learned alone; "
            "merge as in training, by a method that learns nothing, or not at all (merge.r=0)"
        )
    return {name: value for name, value in weights.items() if name in needed or not LEARNED_TOKENS.search(name)}


def _trains_a_part(settings: RunSettings) -> bool:
    """Returns whether the run's checkpoints contain only the part of the model that was trained."""
    return settings.finetune is not None and settings.finetune.mode in ("head", "lora")


def _rebuilt(stored: RunSettings, settings: RunSettings, state: CheckpointState, file: Path) -> nn.Module:
    """Builds a partly trained model with the settings `stored`, from the weights that `settings` name.

    LoRA's adapters are merged into the weights.
    """
    model = built(stored)
    start_weights(model, settings)
    load_trained(model, state, file, Tuning(model, settings.finetune, settings.train.lr).saved_names())
    merge_lora(model)
    return model


def load_trained(model: nn.Module, state: CheckpointState, file: Path, names: set[str] | None) -> None:
    """Copies a checkpoint's weights into a model.

    Args:
        model: the model; if only a part was trained, with the weights that the run started from.
        state: the checkpoint.
        file: its path, for error messages.
        names: names of the weights that the checkpoint contains; None: all of the model's.

    Raises:
        UserError: the weights are another model's, or the part that was not trained has changed.
    """
    if names is not None and state.get("frozen") != checkpoint.digest_of(frozen_state(model, names)):
        raise UserError(
            f"{file}: contains only what was trained, and model.weights are not those that the run started from; "
            "give the same weights"
        )
    checkpoint.load_model_state(model, state["model"], str(file), names)


def check_classes(checkpoint_classes: list[str], data_classes: list[str], file: Path) -> None:
    """Checks that a checkpoint was trained on the data's classes, in the same order.

    Args:
        checkpoint_classes: class names in the checkpoint.
        data_classes: class names of the data.
        file: the checkpoint, for the error message.

    Raises:
        UserError: the classes differ.
    """
    if not same_names(checkpoint_classes, data_classes):
        trained, present = _some(checkpoint_classes), _some(data_classes)
        raise UserError(f"{file}: trained on classes {trained}; the data has {present}")


def with_statistics(data: Data, settings: RunSettings, state: CheckpointState | None = None) -> Data:
    """Returns the data with the mean and standard deviation that normalised images when the weights were trained.

    Args:
        data: the data with its own statistics, which are kept if the weights have none.
        settings: the run's settings; `model.weights` names a run, a checkpoint, or a hub's model with metadata.
        state: the checkpoint that a run resumes from, whose statistics take precedence.
    """
    weights, statistics = settings.model.weights, None
    if state is not None and "mean" in state:
        statistics = state["mean"], state["std"]
    elif weights is not None:
        file = RunFolder(weights).checkpoint("best") if Path(weights).is_dir() else Path(weights)
        statistics = checkpoint.statistics(file) or normalisation(settings.model)
    if statistics is None or len(statistics[0]) != len(data.mean):
        return data
    return replace(data, mean=tuple(statistics[0]), std=tuple(statistics[1]))


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
