"""Training. `fit` reads from top to bottom; everything that a step draws at random is a function of (seed, step)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.cost.budget import drawn_schedule, range_of
from engine.data import Data, Split
from engine.data.loader import TrainLoader, eval_batches
from engine.data.mix import Mix
from engine.data.workers import deaths_in_words
from engine.figures.gallery import wrong_pictures_figure
from engine.machine import peak_memory, pick_autocast, seed_step, to_device
from engine.measure.evaluate import Evaluation, evaluate
from engine.runs import checkpoint
from engine.runs.tracking import Tracker
from engine.runs.weights import load_trained
from engine.settings.schema import RunSettings
from engine.train.features import in_batches, keep_features
from engine.train.optim import EMA, build_optimizer, learning_rate
from engine.train.signals import Stopping
from models.finetune import Tuning, frozen_state, partial_state
from models.settings import UserError

log = logging.getLogger("hybridmerge")


@dataclass
class Progress:
    """How far a run has come: what a checkpoint stores beside weights and optimizer."""

    step: int = 0  # optimizer steps done
    best: float = -1.0  # the best validation accuracy so far
    best_step: int = 0
    seconds: float = 0.0  # spent training, all sessions together
    loss_sum: float = 0.0  # over the images of this epoch so far
    correct: float = 0
    seen: int = 0


class Trainer:
    """Trains one model on one data set, into one run folder.

    Args:
        model: on its device.
        data: splits, classes and statistics.
        settings: the whole run's.
        folder: the run folder; `last.pt` and `best.pt` are kept there.

    Raises:
        UserError: a batch that is larger than the training set.
    """

    def __init__(self, model: nn.Module, data: Data, settings: RunSettings, folder: Path) -> None:
        self.model, self.data, self.settings, self.folder = model, data, settings, folder
        t = settings.train
        self.device = next(model.parameters()).device
        self.autocast = pick_autocast(t.precision, self.device)
        self.precision = "bf16" if self.autocast._enabled else "fp32"
        self.loader = TrainLoader(
            data.train,
            t.batch_size,
            settings.augment,
            data.mean,
            data.std,
            settings.seed,
            data.resize,
            getattr(settings.data, "workers", None),
        )
        self.steps_per_epoch = len(self.loader) // t.accumulate
        if self.steps_per_epoch == 0:
            raise UserError(
                f"train.batch_size = {t.batch_size} x train.accumulate = {t.accumulate}: more than the "
                f"{len(data.train)} training images; use a smaller batch"
            )
        if t.label_smoothing and not data.task.soft_targets:
            raise UserError(f"train.label_smoothing = {t.label_smoothing}: not for many labels; set it to 0")
        self.total_steps = t.steps or t.epochs * self.steps_per_epoch
        self.epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self.warmup_steps = round(t.warmup_ratio * self.total_steps or t.warmup_epochs * self.steps_per_epoch)
        mixing = any(settings.augment.mixing())
        classes = len(data.classes)
        self.mix = Mix(settings.augment, classes, t.label_smoothing, data.task) if mixing else None
        self.tuning = Tuning(model, settings.finetune, t.lr)
        if (late := max(self.tuning.learns_from.values())) >= self.epochs:
            said = f"finetune.groups.epoch = {late}: the run has {self.epochs} epochs, counted from 0"
            raise UserError(f"{said}, so that it never begins; use an earlier one")
        self.saved_names = self.tuning.saved_names()
        self.frozen_digest = checkpoint.digest_of(frozen_state(model, self.saved_names))
        self.optimizer = build_optimizer(
            model, t.optimizer, t.lr, t.weight_decay, t.momentum, tuple(t.betas), self.tuning.scales
        )
        self.ema = EMA(model, t.ema) if t.ema else None
        self.fingerprint = data.fingerprint()
        self.progress = Progress()
        self.net, self.features = model, None  # what a step calls, and on what; see _keep_features
        self._clock = 0.0

    def fit(self, tracker: Tracker) -> None:
        """Runs every step that is left, and tells the tracker. Ends with `best.pt` and `last.pt` written."""
        self.tracker = tracker
        self._keep_features()
        bar = tqdm(total=self.total_steps, initial=self.progress.step, unit="step", dynamic_ncols=True, disable=None)
        with deaths_in_words(), bar, logging_redirect_tqdm([log]), Stopping() as stopping, closing(self.loader):
            first = True
            while self.progress.step < self.total_steps:
                epoch = self.progress.step // self.steps_per_epoch
                self.tuning.begin(epoch)
                if self.settings.finetune and (news := self.tuning.describe(epoch, always=first)):
                    log.info(news)
                first = False
                self._clock = time.perf_counter()
                for micro_batches in self._epoch(epoch):
                    self._step(micro_batches, bar)
                    ended = self.progress.step % self.steps_per_epoch == 0 or self.progress.step == self.total_steps
                    if ended:
                        self._end_epoch(epoch)
                    every = self.settings.checkpoint.every_steps
                    if ended or stopping.asked or (every and self.progress.step % every == 0):
                        self.save()
                    stopping.leave_if_asked(self.folder)
                    self._clock = time.perf_counter()  # validating and saving are not training

    def _epoch(self, epoch: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The micro-batches of each step that is left in an epoch."""
        accumulate = self.settings.train.accumulate
        done = self.progress.step - epoch * self.steps_per_epoch
        batches = self.loader.epoch(epoch, start=done * accumulate)
        for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.progress.step)):
            yield list(islice(batches, accumulate))

    def _keep_features(self) -> None:
        """Where the head alone learns and nothing is augmented: runs the frozen part once, for the whole training."""
        start = time.perf_counter()
        if self.progress.step < self.total_steps:
            kept = keep_features(self.model, self.data, self.settings, self.folder, self.device, self.autocast)
            if kept is not None:
                self.loader, self.features, self.net = kept
                self.progress.seconds += time.perf_counter() - start

    def _step(self, micro_batches: list[tuple[Tensor, Tensor]], bar: tqdm) -> None:
        p, t = self.progress, self.settings.train
        lr = learning_rate(p.step, self.total_steps, self.warmup_steps, t.lr, t.min_lr, t.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        seed_step(self.settings.seed, p.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses, corrects = [], []
        with self._drawn_budget():
            for i, (images, labels) in enumerate(micro_batches):
                loss, correct = self._forward(images, labels, key=p.step * t.accumulate + i)
                (loss / len(micro_batches)).backward()
                losses.append(loss.detach())
                corrects.append(correct)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), t.clip_norm or math.inf)
        # One wait for the device in a step.
        *losses, right, norm = torch.stack([*losses, torch.stack(corrects).sum(), norm]).tolist()
        self._demand_finite({"loss": sum(losses), "gradient": norm})
        sizes = [len(labels) for _, labels in micro_batches]
        p.loss_sum += sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        p.correct += right
        p.seen += sum(sizes)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.model)
        p.step += 1
        seconds = time.perf_counter() - self._clock
        p.seconds += seconds
        self._report(bar, lr, sum(sizes) / seconds)

    @contextmanager
    def _drawn_budget(self) -> Iterator[None]:
        """Inside, the model removes as many tokens as this step has drawn, where `merge.r` is drawn for each step."""
        if range_of(self.settings.model) is None:
            yield
            return
        own = self.model.schedule
        self.model.schedule = drawn_schedule(self.settings.model, self.settings.seed, self.progress.step)
        try:
            yield
        finally:
            self.model.schedule = own

    def _forward(self, images: Tensor, labels: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """One micro-batch: its mean loss, and how many it got right.

        Of mixed images the larger part counts, of many labels the share that is right. Where a model has several heads,
        each learns: the loss is their mean. Their sum predicts.
        """
        targets = labels
        if self.mix:
            images, targets = self.mix(images, labels, key, self.settings.seed)
        images, targets = to_device(images, self.device), targets.to(self.device, non_blocking=True)
        with self.autocast:
            heads = self.net.forward_heads(images) if hasattr(self.net, "forward_heads") else (self.net(images),)
        smoothing = 0.0 if self.mix else self.settings.train.label_smoothing  # mixed targets are smoothed already
        losses = [self.data.task.loss(logits.float(), targets, smoothing) for logits in heads]
        return torch.stack(losses).mean(), self.data.task.correct(sum(heads), targets).sum()

    def _demand_finite(self, values: dict[str, float]) -> None:
        """Ends the run before a step, or a checkpoint, that would spoil the weights."""
        for what, value in values.items():
            if not math.isfinite(value):
                step, lr = self.progress.step, self.settings.train.lr
                where = f"step {step} (epoch {step // self.steps_per_epoch + 1})"
                kept = [path.name for path in sorted(self.folder.glob("*.pt"))]
                raise UserError(
                    f"train.lr = {lr}: the {what} is {value} after {where}; "
                    "start a run under another name= with a lower train.lr, a longer train.warmup_epochs, or "
                    f"train.precision=fp32; {' and '.join(kept) or 'no checkpoint'} in {self.folder} stay as they were"
                )

    def _report(self, bar: tqdm, lr: float, images_per_second: float) -> None:
        p = self.progress
        loss, accuracy = p.loss_sum / p.seen, p.correct / p.seen
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.3f}", img_s=f"{images_per_second:.0f}", refresh=False)
        if p.step % self.settings.log.every_steps == 0 or p.step % self.steps_per_epoch == 0:
            memory = peak_memory(self.device)
            scalars = {"train/loss": loss, "train/accuracy": accuracy, "lr": lr}
            self.tracker.scalars(p.step, {**scalars, "images_per_second": images_per_second, "memory_mib": memory})

    def _end_epoch(self, epoch: int) -> None:
        """Validates, keeps the best weights, and clears the epoch's sums."""
        p = self.progress
        line = f"epoch {epoch + 1}/{self.epochs}  train loss {p.loss_sum / p.seen:.4f}"
        line += f" acc {p.correct / p.seen:.4f}"
        score = p.step / self.total_steps  # without a validation split the last epoch is the best
        with self._kept_weights():
            if len(self.data.val):
                found = self._validate()
                self._demand_finite({"validation loss": found.loss})
                score = found.score
                line += f"  val loss {found.loss:.4f} {next(iter(found.metrics))} {score:.4f}"
            if score > p.best:
                p.best, p.best_step = score, p.step
                checkpoint.save(self.folder / "best.pt", {**self._weights(), "step": p.step})
        log.info("%s  %.0f s", line, p.seconds)
        p.loss_sum, p.correct, p.seen = 0.0, 0, 0

    def _weights(self) -> dict:
        """What any reader of a checkpoint needs: weights, or the part of them that learns, classes, statistics."""
        return {
            "model": partial_state(self.model, self.saved_names),
            "partial": self.saved_names is not None,
            "frozen": self.frozen_digest,
            "classes": self.data.classes,
            "mean": list(self.data.mean),
            "std": list(self.data.std),
        }

    @contextmanager
    def _kept_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that are evaluated and kept: the moving average, if there is one."""
        if self.ema is None:
            yield
            return
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.shadow)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _validate(self) -> Evaluation:
        found = self.evaluate(self.data.val, self.settings.log.images, self.features)
        self.tracker.scalars(self.progress.step, found.scalars("val"))
        if found.mistakes:
            names, wrong = self.data.classes, found.mistakes
            figure = wrong_pictures_figure(
                self.data.val.read(torch.tensor([m.position for m in wrong])),
                [names[m.label] for m in wrong],
                [names[m.predicted] for m in wrong],
                [m.confidence for m in wrong],
            )
            self.tracker.figure(self.progress.step, "val/wrong_with_most_confidence", figure)
        return found

    def evaluate(
        self, arrays: Split, keep_mistakes: int = 0, features: Tensor | None = None, keep_logits: bool = False
    ) -> Evaluation:
        """The model as it stands, on a split; or its head on the split's features."""
        size, net = self.settings.train.batch_size, self.model
        batches = eval_batches(arrays, size, self.data.mean, self.data.std, self.data.resize)
        if features is not None:
            batches, net = in_batches(features, arrays.labels, size), self.net
        classes = len(self.data.classes)
        return evaluate(
            net,
            batches,
            self.data.task,
            classes,
            self.device,
            self.autocast,
            keep_mistakes=keep_mistakes,
            keep_logits=keep_logits,
        )

    def save(self) -> None:
        """Writes `last.pt`: all that the next step depends on."""
        state = {
            **self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(self.saved_names) if self.ema else None,
            "progress": asdict(self.progress),
            "data": self.fingerprint,
            "lines": self.tracker.flush(),
        }
        checkpoint.save(self.folder / "last.pt", state)

    def resume(self, state: dict) -> None:
        """Takes up a state that `save` wrote.

        Raises:
            UserError: it was trained on other images, labels or classes, or is of another model.
        """
        if state["data"] != self.fingerprint:
            raise UserError(
                f"{self.folder}: the images, labels or classes are not those that this run was trained on; "
                "resume on the same data, or start a run under another name="
            )
        load_trained(self.model, state, self.folder / "last.pt", self.saved_names)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.progress = Progress(**state["progress"])
