"""Estimates how long a run takes, from a few of its real steps, of which nothing is kept."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from engine.data import Data
from engine.launch.group import ALONE, Group
from engine.machine import device_name, pick_device
from engine.measure.evaluate import evaluate_split
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train.build import Preparation, build_trainer
from engine.train.experiment import data_of, explained_limits, prepare_run
from engine.train.loop.checkpoints import Progress

STEPS = 8  # that are timed, after one to warm up
SECONDS = 10.0  # after which no further step is timed


@dataclass(frozen=True)
class Estimate:
    """What a run consists of, and how long its parts take on this machine.

    Attributes:
        train_images: images of an epoch.
        val_images: images of each validation.
        test_images: images of the test at the end.
        gmacs: of one image forward; None: not counted.
        params: of the model.
        steps: optimizer steps of the whole run.
        images: training images of all steps together.
        epochs: of which the last may be incomplete.
        start_seconds: to load the data and build the model.
        step_seconds: of an optimizer step, with the wait for its images.
        eval_seconds: to evaluate one image, which several processes do together.
        timed_steps: how many steps `step_seconds` is the mean of.
        kept_features: whether the run may compute the frozen part's output once, and then takes less than this.
        device: that it was measured on.
        threads: of the CPU, in each process.
        processes: that train together.
        took_seconds: for this estimate itself.
    """

    train_images: int
    val_images: int
    test_images: int
    gmacs: float | None
    params: int
    steps: int
    images: int
    epochs: int
    start_seconds: float
    step_seconds: float
    eval_seconds: float
    timed_steps: int
    kept_features: bool
    device: str
    threads: int
    processes: int
    took_seconds: float

    @property
    def seconds(self) -> float:
        """The time of the whole run: start, steps, a validation after each epoch, and the test."""
        evaluated = self.epochs * self.val_images + self.test_images
        return self.start_seconds + self.steps * self.step_seconds + evaluated * self.eval_seconds

    def to_json(self) -> dict:
        return {**asdict(self), "seconds": self.seconds}


def estimate(settings: RunSettings, group: Group = ALONE) -> Estimate:
    """Loads a run's data, builds its model, and times some of its training steps. No run folder is made.

    Args:
        settings: of a run, with a fold chosen where there are folds.
        group: the processes that would train together. They take the steps together.

    Raises:
        UserError: device, data and model do not fit together.
    """
    started = time.perf_counter()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device) if group.size == 1 else group.device
    finetune = settings.finetune
    keeps = finetune is not None and finetune.mode == "head" and finetune.cache != "none"
    keeps = keeps and settings.train.teacher is None
    if keeps:  # computing the features of all images would take as long as a large part of the run
        settings = settings.model_copy(update={"finetune": finetune.model_copy(update={"cache": "none"})})
    with explained_limits(settings, device), tempfile.TemporaryDirectory() as temporary:
        data = data_of(settings, group)
        with group.agreed():
            settings = settings.with_classes(len(data.classes))
            prepared = prepare_run(settings, data, Path(temporary), device, None, group)
        start_seconds = time.perf_counter() - started
        step_seconds, timed = _timed_steps(prepared, Path(temporary))
        eval_seconds = _timed_evaluation(prepared, data)
    batches, t = prepared.batches, settings.train
    return Estimate(
        train_images=len(data.train),
        val_images=len(data.val),
        test_images=len(data.test),
        gmacs=prepared.cost.gmacs,
        params=prepared.cost.params,
        steps=batches.total_steps,
        images=batches.total_steps * t.batch_size * t.accumulate,
        epochs=prepared.epochs,
        start_seconds=start_seconds,
        step_seconds=step_seconds,
        eval_seconds=eval_seconds,
        timed_steps=timed,
        kept_features=keeps,
        device=device_name(device),
        threads=torch.get_num_threads(),
        processes=group.size,
        took_seconds=time.perf_counter() - started,
    )


def _timed_steps(prepared: Preparation, folder: Path) -> tuple[float, int]:
    """Returns the mean seconds of the first steps after one to warm up, and their number."""
    batches = prepared.batches
    with Tracker(folder) as tracker:
        trainer = build_trainer(prepared, Progress(), tracker)
        begun, times = None, []
        try:
            for micro_batches in islice(batches.epoch(0, 0), STEPS + 1):
                trainer.step(micro_batches)
                now = time.perf_counter()  # a step ends by reading its loss, for which it waits for the device
                if begun is not None:
                    times.append(now - begun)
                begun = now
                if prepared.group.largest(int(sum(times) > SECONDS)):  # all stop after the same step
                    break
        finally:
            batches.close()
    return (sum(times) / len(times), len(times)) if times else (0.0, 0)


def _timed_evaluation(prepared: Preparation, data: Data) -> float:
    """Returns the seconds that the evaluation of an image takes, by all processes; 0 without images to evaluate."""
    split = next((name for name in ("val", "test") if len(getattr(data, name))), None)
    if split is None:
        return 0.0
    size, group = prepared.settings.train.batch_size, prepared.group
    for _ in range(2):  # the first to warm up
        started = time.perf_counter()
        n = evaluate_split(prepared.model, data, split, size, prepared.autocast, first=group.size, group=group).n
        seconds = time.perf_counter() - started
    return seconds / n
