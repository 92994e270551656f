"""Builds the trainer of a run from its settings.

First `prepare` makes everything that can fail for a user's mistake, before anything is written into the run folder.
Then `build_trainer` puts the parts together, with the tracker that writes there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.cost.budget import drawn_schedule, range_of
from engine.cost.macs import Complexity
from engine.data import Data
from engine.data.augmentation.mix import Mix
from engine.data.loading.loader import TrainLoader, eval_batches
from engine.data.loading.order import Order, build_order
from engine.launch.batchnorm import share_batchnorm
from engine.launch.group import ALONE, Group
from engine.launch.sharding import shard
from engine.machine import pick_autocast
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings, TrainSettings
from engine.train.loop.batches import StepBatches
from engine.train.loop.checkpoints import Checkpoints, Progress
from engine.train.loop.distillation import DistilledObjective, Teacher
from engine.train.loop.features import head_on_features, in_batches, keep_features
from engine.train.loop.objective import Objective
from engine.train.loop.optim import LearningRate, MovingAverage, Optimization, build_optimizer
from engine.train.loop.trainer import Trainer
from engine.train.loop.validation import Validation
from engine.train.loop.weighting import class_weights
from engine.train.teacher import source_of, teacher_of
from engine.wording import counted
from models.finetune import Tuning
from models.recomputing import recompute_blocks
from models.settings import UserError


@dataclass(frozen=True)
class Preparation:
    """A run that is ready to be trained: the model, its data, and the parts that do not write into the run folder."""

    settings: RunSettings
    model: nn.Module  # on its device
    data: Data
    cost: Complexity  # of one image, without adapters
    autocast: torch.autocast
    tuning: Tuning
    optimization: Optimization
    batches: StepBatches  # of images
    weights: Tensor | None  # of the classes in the loss; None: all count alike
    teacher: Teacher | None
    checkpoints: Checkpoints
    group: Group

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def precision(self) -> str:
        """The precision that is computed in: "bf16" or "fp32"."""
        return "bf16" if self.autocast._enabled else "fp32"

    @property
    def epochs(self) -> int:
        """The number of epochs; the last one may be incomplete."""
        return -(-self.batches.total_steps // self.batches.steps_per_epoch)


def prepare(
    model: nn.Module, data: Data, settings: RunSettings, folder: Path, cost: Complexity, group: Group = ALONE
) -> Preparation:
    """Prepares the training of a model.

    Args:
        model: with the weights that it starts from, on its device unless it is to be sharded; adapters are added to it
            where the settings ask for them.
        data: splits, classes and statistics.
        settings: of the whole run.
        folder: the run folder, in which nothing is written.
        cost: of one image.
        group: the processes that train together.

    Raises:
        UserError: a batch that is larger than the training set, options that the labels do not allow, parameters that
            would begin to learn after the last epoch, a teacher that cannot teach this run; or see `placed`.
    """
    t = settings.train
    device = next(model.parameters()).device if group.size == 1 else group.device
    batches = build_batches(data, settings, device, group)
    weights = class_weights(t.class_weights, data.task, data.classes, data.train.labels)
    tuning = Tuning(model, settings.finetune, t.lr)
    epochs = -(-batches.total_steps // batches.steps_per_epoch)
    if (late := max(tuning.learns_from.values())) >= epochs:
        raise UserError(
            f"finetune.groups.epoch = {late}: the run has {counted(epochs, 'epoch')}, counted from 0, so that it never "
            "begins; use an earlier one"
        )
    average = placed(model, t, group)
    optimizer = build_optimizer(model, t.optimizer, t.lr, t.weight_decay, t.momentum, tuple(t.betas), tuning.scales)
    warmup_steps = round(t.warmup_ratio * batches.total_steps or t.warmup_epochs * batches.steps_per_epoch)
    rate = LearningRate(t.lr, batches.total_steps, warmup_steps, t.min_lr, t.schedule)
    optimization = Optimization(model, optimizer, rate, t.clip_norm, average)
    autocast, source = pick_autocast(t.precision, device), source_of(settings, data)
    digest = None if source is None else source.digest
    teacher = None if source is None else teacher_of(source, settings, data, model, autocast)
    checkpoints = Checkpoints(
        folder, model, data, settings, optimization, tuning.saved_names(), digest, writes=group.leads
    )
    return Preparation(
        settings, model, data, cost, autocast, tuning, optimization, batches, weights, teacher, checkpoints, group
    )


def placed(model: nn.Module, settings: TrainSettings, group: Group) -> MovingAverage | None:
    """Changes a model, in place, to how several processes train it and its activations are kept.

    Returns:
        The moving average of its weights; None: there is none.

    Raises:
        UserError: the model does not allow what the settings ask for.
    """
    if settings.sync_batchnorm and group.size > 1:
        share_batchnorm(model, group.device)
    average = MovingAverage(model, settings.ema) if settings.ema else None  # a copy, which sharded models do not allow
    if settings.checkpoint_activations:
        recompute_blocks(model)
    if settings.parallel == "fsdp" and group.size > 1:
        for network in [model] if average is None else [model, average.module]:
            shard(network, group.device, group.size)
    return average


def build_batches(data: Data, settings: RunSettings, device: torch.device, group: Group = ALONE) -> StepBatches:
    """Builds the training batches of images on a device; see `prepare` for what is refused."""
    t, augment = settings.train, settings.augment
    workers, share = getattr(settings.data, "workers", None), group.share(t.batch_size, "train.batch_size")
    smoothing = t.label_smoothing if t.class_weights == "none" else 0.0  # weights are those of labels before smoothing
    mixes = any(augment.mixing())  # then whole batches are read: an image may be mixed with one of another share
    loader = TrainLoader(
        data.train,
        t.batch_size,
        augment,
        data.mean,
        data.std,
        settings.seed,
        data.resize,
        workers,
        order_of(data, settings),
        device,
        slice(None) if mixes else share,
    )
    steps_per_epoch = len(loader) // t.accumulate
    if steps_per_epoch == 0:
        raise UserError(
            f"train.batch_size = {t.batch_size} x train.accumulate = {t.accumulate}: more than the "
            f"{counted(len(data.train), 'training image')}; use a smaller batch"
        )
    if t.label_smoothing and not data.task.soft_targets:
        raise UserError(f"train.label_smoothing = {t.label_smoothing}: not for many labels; set it to 0")
    mix = Mix(augment, len(data.classes), smoothing, data.task) if mixes else None
    steps, share = t.steps or t.epochs * steps_per_epoch, share if mixes else slice(None)
    return StepBatches(loader, t.accumulate, steps, mix, settings.seed, share)


def order_of(data: Data, settings: RunSettings) -> Order:
    """Returns the order in which training draws its images."""
    return build_order(data.train.labels, settings.seed, settings.train.sampling)


def build_trainer(
    prepared: Preparation, progress: Progress, tracker: Tracker, wrap: Callable[[Objective], nn.Module] | None = None
) -> Trainer:
    """Puts the trainer together.

    Where only the head learns and nothing is augmented, the frozen part of the model runs over all images here, once,
    and the trainer sees nothing but features.

    Args:
        prepared: the run.
        progress: how far it has come; it is changed in place.
        tracker: of the run.
        wrap: wraps the objective before it is called, see `Trainer`; None: as its processes need it.
    """
    settings, model, data, t = prepared.settings, prepared.model, prepared.data, prepared.settings.train
    batches, autocast = prepared.batches, prepared.autocast
    val_batches = partial(eval_batches, data.val, t.batch_size, data.mean, data.std, data.resize, prepared.device)
    network_of = _itself
    if progress.step < batches.total_steps:
        started = time.perf_counter()
        options = {"batch_size": t.batch_size, "folder": prepared.checkpoints.folder, "autocast": autocast}
        order = order_of(data, settings)
        options["taught"] = prepared.teacher is not None
        features = keep_features(model, data, settings.finetune, settings.augment, order=order, **options)
        if features is not None:
            progress.seconds += time.perf_counter() - started
            batches.close()
            share = prepared.group.share(t.batch_size, "train.batch_size")
            batches = StepBatches(features.loader, t.accumulate, batches.total_steps, None, settings.seed, share)
            val_batches = partial(in_batches, features.val, data.val.labels, t.batch_size)
            network_of = head_on_features
    validation = Validation(
        data, val_batches, network_of, autocast, tracker, settings.log.images, t.select, prepared.group
    )
    schedules = {}
    if range_of(settings.model) is not None:
        schedules["schedule_of"] = partial(drawn_schedule, settings.model, settings.seed)
    return Trainer(
        objective_of(prepared, network_of(model), mixed=batches.mix is not None),
        prepared.tuning,
        batches,
        prepared.optimization,
        prepared.checkpoints,
        tracker,
        validation if len(data.val) else None,
        progress,
        seed=settings.seed,
        log_every=settings.log.every_steps,
        save_every=settings.checkpoint.every_steps,
        wrap=wrap or prepared.group.wrap,
        group=prepared.group,
        **schedules,
    )


def objective_of(prepared: Preparation, network: nn.Module, *, mixed: bool) -> Objective:
    """Returns the objective of a run.

    Args:
        prepared: the run.
        network: what learns: the model, or its head alone.
        mixed: whether batches are mixed, which smooths their targets, too.
    """
    t, smoothed = prepared.settings.train, mixed and prepared.weights is None
    smoothing = 0.0 if smoothed else t.label_smoothing
    given = network, prepared.data.task, prepared.autocast, smoothing, prepared.weights
    return Objective(*given) if prepared.teacher is None else DistilledObjective(*given, prepared.teacher, t.distill)


def _itself(model: nn.Module) -> nn.Module:
    return model
