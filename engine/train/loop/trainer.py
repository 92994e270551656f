"""The training loop, in `Trainer.fit`. What a step draws at random is a function of (seed, step) alone."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.data.loading.workers import killed_workers_as_errors
from engine.launch.group import ALONE, Group, unsynchronised
from engine.machine import peak_memory, seed_step, to_device
from engine.runs.tracking import Tracker
from engine.train.loop.batches import Batch, StepBatches
from engine.train.loop.checkpoints import Checkpoints, Progress
from engine.train.loop.objective import Objective
from engine.train.loop.optim import Optimization
from engine.train.loop.signals import Stopped, Stopping
from engine.train.loop.validation import Validation
from models.finetune import Tuning

log = logging.getLogger("hybridmerge")


class Trainer:
    """Trains one model on one data set, into one run folder.

    Args:
        objective: from a batch to its loss, on its device.
        tuning: which parameters learn in which epoch.
        batches: the batches of each step.
        optimization: learning rate, clipping, optimizer and moving average.
        checkpoints: of the run folder.
        tracker: of the run.
        validation: after each epoch; None: there are no validation images, and the last weights are the best.
        progress: how far the run has come.
        seed: of the run.
        schedule_of: the number of patches that each block removes in a step, where this is drawn for each step.
        log_every: optimizer steps between lines of `metrics.jsonl`.
        save_every: optimizer steps between checkpoints; 0: at the end of each epoch only.
        wrap: wraps the objective before it is called, for example into DistributedDataParallel. It is called again
            whenever other parameters begin to learn, because such wrappers rely on `requires_grad` not changing.
        group: the processes that train together.
    """

    def __init__(
        self,
        objective: Objective,
        tuning: Tuning,
        batches: StepBatches,
        optimization: Optimization,
        checkpoints: Checkpoints,
        tracker: Tracker,
        validation: Validation | None,
        progress: Progress,
        *,
        seed: int,
        schedule_of: Callable[[int], list[int] | None] = lambda step: None,
        log_every: int = 20,
        save_every: int = 0,
        wrap: Callable[[Objective], nn.Module] = lambda objective: objective,
        group: Group = ALONE,
    ) -> None:
        self.objective, self.tuning, self.batches, self.optimization = objective, tuning, batches, optimization
        self.checkpoints, self.tracker, self.validation, self.progress = checkpoints, tracker, validation, progress
        self.seed, self.schedule_of, self.wrap, self.group = seed, schedule_of, wrap, group
        self.log_every, self.save_every = log_every, save_every
        self.device = next(objective.parameters()).device
        self.saved_step = progress.step
        self.tuning.begin(self.epoch)
        self.module = wrap(objective)  # what a step calls

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.progress.step // self.batches.steps_per_epoch

    def fit(self) -> None:
        """Runs every step that is left. Ends with `best.pt` and `last.pt` written."""
        progress, batches = self.progress, self.batches
        options = {"unit": "step", "dynamic_ncols": True, "disable": None if self.group.leads else True}
        bar = tqdm(total=batches.total_steps, initial=progress.step, **options)
        logs = logging_redirect_tqdm([log]) if self.group.leads else nullcontext()
        with killed_workers_as_errors(), bar, logs, Stopping(patient=self.group.size > 1) as stopping:
            with closing(batches):
                self._log_what_learns()
                try:
                    while progress.step < batches.total_steps and not stopping.asked:
                        self._run_epoch(self.epoch, stopping, bar)
                except Stopped:  # while a batch was waited for, so that the last step is complete
                    pass
                if self.saved_step != progress.step:
                    self.save()
            stopping.leave_if_asked(self.checkpoints.folder, says=self.group.leads)

    def _run_epoch(self, epoch: int, stopping: Stopping, bar: tqdm) -> None:
        """Runs the steps that are left in an epoch, or those before a signal to stop."""
        progress, batches = self.progress, self.batches
        self._begin_epoch(epoch)
        started = time.perf_counter()
        for micro_batches in stopping.waiting(batches.epoch(epoch, progress.step)):
            lr = self.step(micro_batches)
            seconds = time.perf_counter() - started
            progress.seconds += seconds
            images = self.group.size * sum(len(targets) for _, targets in micro_batches)
            self._report(bar, lr, images / seconds)
            ended = progress.step % batches.steps_per_epoch == 0 or progress.step == batches.total_steps
            if ended:
                self._end_epoch(epoch)
            if ended or (self.save_every and progress.step % self.save_every == 0):
                self.save()
            stopping.asked = self.group.largest(stopping.heard)  # all stop after the same step
            if stopping.asked:
                return
            started = time.perf_counter()  # validating and saving are not training

    def step(self, micro_batches: list[Batch]) -> float:
        """Takes one optimizer step on the mean loss of its micro-batches; returns the learning rate."""
        progress, device = self.progress, self.device
        lr = self.optimization.begin(progress.step)
        seed_step(self.seed, progress.step, self.group.rank)
        schedule = self.schedule_of(progress.step)
        losses, corrects = [], []
        for number, (images, targets) in enumerate(micro_batches, start=1):
            images, targets = to_device(images, device), targets.to(device, non_blocking=True)
            with unsynchronised(self.module, last=number == len(micro_batches)):
                loss, correct = self.module(images, targets, schedule)
                (loss / len(micro_batches)).backward()
            losses.append(loss.detach())
            corrects.append(correct)
        norm = self.optimization.clip()
        # In one process the only time in a step that the program waits for the device.
        values = self.group.mean(torch.stack([*losses, torch.stack(corrects).sum(), norm]))
        *losses, right, norm = values.tolist()
        self._check_finite({"loss": sum(losses), "gradient": norm})
        size = self.group.size
        progress.add(losses, [size * len(targets) for _, targets in micro_batches], size * right)
        self.optimization.apply()
        progress.step += 1
        return lr

    def _begin_epoch(self, epoch: int) -> None:
        """Lets the parameters of this epoch learn; wraps the objective anew if they are others than before."""
        if self.tuning.begin(epoch):
            self.module = self.wrap(self.objective)
            self._log_what_learns()

    def _end_epoch(self, epoch: int) -> None:
        """Validates, keeps the best weights, and clears the sums of the epoch."""
        progress, batches = self.progress, self.batches
        epochs = math.ceil(batches.total_steps / batches.steps_per_epoch)
        line = f"epoch {epoch + 1}/{epochs}  train loss {progress.loss_sum / progress.seen:.4f}"
        line += f" acc {progress.correct / progress.seen:.4f}"
        if self.validation is None:  # the last epoch is the best
            score, improved = progress.step / batches.total_steps, True
        else:
            evaluation = self.validation.run(self.optimization.kept_model, progress.step)
            self._check_finite({"validation loss": evaluation.loss})
            score = self.validation.selected(evaluation)
            improved = score > progress.best
            line += f"  {self.validation.line(evaluation)}"
        if improved:
            progress.best, progress.best_step = score, progress.step
            self.checkpoints.save_best(progress.step)
        log.info("%s  %.0f s", line, progress.seconds)
        progress.begin_epoch()

    def save(self) -> None:
        """Writes `last.pt`, after everything that was tracked so far."""
        self.checkpoints.save_last(self.progress, self.tracker.flush())
        self.saved_step = self.progress.step

    def _log_what_learns(self) -> None:
        if self.tuning.settings is not None and self.progress.step < self.batches.total_steps:
            log.info(self.tuning.describe())

    def _report(self, bar: tqdm, lr: float, images_per_second: float) -> None:
        progress = self.progress
        loss, accuracy = progress.loss_sum / progress.seen, progress.correct / progress.seen
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.3f}", img_s=f"{images_per_second:.0f}", refresh=False)
        if progress.step % self.log_every == 0 or progress.step % self.batches.steps_per_epoch == 0:
            memory = peak_memory(self.device)
            scalars = {"train/loss": loss, "train/accuracy": accuracy, "lr": lr}
            self.tracker.scalars(
                progress.step, {**scalars, "images_per_second": images_per_second, "memory_mib": memory}
            )

    def _check_finite(self, values: dict[str, float]) -> None:
        """Raises a UserError before a step, or a checkpoint, that would spoil the weights."""
        for what, value in values.items():
            if not math.isfinite(value):
                lr, folder = self.optimization.rate.lr, self.checkpoints.folder
                kept = " and ".join(path.name for path in sorted(folder.glob("*.pt")))
                raise self.group.for_all(
                    f"train.lr = {lr}: the {what} is {value} after step {self.progress.step} (epoch {self.epoch + 1}); "
                    "start a run under another name= with a lower train.lr, a longer train.warmup_epochs, or "
                    f"train.precision=fp32; {f'unchanged in {folder}: {kept}' if kept else 'nothing was saved yet'}"
                )
