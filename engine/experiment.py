"""A run from its settings: build, train, test, write down. And a finished run's folder back into a model."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from logging.handlers import MemoryHandler
from pathlib import Path

import torch
from torch import nn

from engine import checkpoint
from engine.budget import range_of, solve, target_macs
from engine.complexity import Complexity, measure
from engine.config import RunSettings, changed_on_resume, load_settings, to_yaml
from engine.data import Data, build_data
from engine.data.loader import eval_batches
from engine.evaluate import Evaluation, evaluate
from engine.run import write_json_atomic, write_text_atomic
from engine.runtime import commit, device_name, peak_memory, pick_autocast, pick_device, seed_step, versions
from engine.tracking import Tracker
from engine.train import Trainer
from models import build
from models.settings import UserError

log = logging.getLogger("hybridmerge")


def start_log() -> MemoryHandler:
    """Sends the project's log to the terminal, and keeps it for `log_to` to write down."""
    kept = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stdout), kept]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return kept


def log_to(folder: Path, kept: MemoryHandler) -> None:
    """From now on, and what was kept till now: also to `log.txt` in the run folder."""
    file = logging.FileHandler(folder / "log.txt")
    file.setFormatter(kept.formatter)
    kept.setTarget(file)
    kept.flush()
    log.handlers[1] = file


def run_experiment(settings: RunSettings, folder: Path, resume: bool = False) -> dict:
    """Trains by `settings` in an opened run folder, tests once at the end, and writes `results.json`.

    Args:
        settings: checked settings.
        folder: the run's own folder, locked by the caller.
        resume: go on from `last.pt` if there is one.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: device, data, model and checkpoint that do not go together, in one line.
    """
    if resume:
        check_unchanged(settings, folder)
        if (folder / "results.json").is_file():
            return json.loads((folder / "results.json").read_text())  # it came to its end; the test set is used once
    kept, code = start_log(), commit()  # now: the files may be other ones when the run ends
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    with limits_in_words(settings, device):
        data = build_data(settings.data, settings.split, settings.seed)
        solved = with_budget(settings)
        model = build_for(solved, data).to(device)
        cost = measure(model, settings=solved.model)
        trainer = Trainer(model, data, settings, folder)
        state = checkpoint.load(folder / "last.pt") if resume and (folder / "last.pt").exists() else None
        if state:
            trainer.resume(state)

        # Nothing is written before everything fits together: a mistake corrected, the same command runs.
        log_to(folder, kept)
        write_text_atomic(folder / "settings.yaml", to_yaml(settings))
        with Tracker(folder, trainer.progress.step, state["lines"]) if state else Tracker(folder) as tracker:
            describe(trainer)
            tracker.curve("tokens_left_after_block", model.tokens_per_block())
            trainer.fit(tracker)
            results = {**test(trainer, cost), "commit": code}
            write_json_atomic(folder / "results.json", results)
            measured = {f"hparam/{key}": results[key] for key in ("test_top1", "gmacs", "params", "seconds")}
            tracker.hparams(results["steps"], settings.model_dump(mode="json"), measured)
    return results


@contextmanager
def limits_in_words(settings: RunSettings, device: torch.device) -> Iterator[None]:
    """Turns running out of memory, or of values for BatchNorm, into a UserError that says what to change."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            size = settings.train.batch_size
            raise UserError(
                f"train.batch_size = {size}: BatchNorm has one value per channel; use 2 or more, or a finer grid"
            ) from error
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            size, accumulate = settings.train.batch_size, settings.train.accumulate
            smaller = f"train.batch_size={max(size // 2, 1)} train.accumulate={accumulate * 2}"
            raise UserError(
                f"train.batch_size = {size}: out of memory on {device}; the same batch in smaller parts is {smaller}"
            ) from error
        raise


def check_unchanged(settings: RunSettings, folder: Path) -> None:
    """Demands that a resumed run computes what it started to compute.

    Raises:
        UserError: the first setting that differs and may not.
    """
    stored = folder / "settings.yaml"
    if not stored.exists():
        return  # it was stopped before it began
    if changed := changed_on_resume(load_settings(str(stored)), settings):
        raise UserError(f"{changed}, in {folder}; resume without this change, or start a run under another name=")


def describe(trainer: Trainer) -> None:
    """Says once what is about to be trained on what, and what merging will really remove."""
    data, model = trainer.data, trainer.model
    log.info("%s on %s, %s, from step %d of %d", trainer.settings.name, device_name(trainer.device), trainer.precision,
             trainer.progress.step, trainer.total_steps)  # fmt: skip
    log.info("%d training, %d validation, %d test images, %d classes", len(data.train), len(data.val), len(data.test),
             len(data.classes))  # fmt: skip
    log.info("tokens removed by each block: %s; left: %s", model.schedule, model.tokens_per_block())
    if drawn := range_of(trainer.settings.model):
        log.info("this is the middle: each training step draws r from %d to %d; validation and test stay there", *drawn)


def with_budget(settings: RunSettings) -> RunSettings:
    """The settings with `merge.target_gmacs` or `target_ratio` solved: what a model is built from.

    A run folder keeps the settings as they were asked for.
    """
    return settings.model_copy(update={"model": solve(settings.model)})


def build_for(settings: RunSettings, data: Data) -> nn.Module:
    """The model of the settings, its weights drawn from the run's seed.

    Raises:
        UserError: the model's input or classes are not the data's.
    """
    channels, height, width = data.test.images.shape[1:]
    wanted = {"in_chans": channels, "img_size": height, "num_classes": len(data.classes)}
    if height != width:
        raise UserError(f"data.name = {settings.data.name!r}: images are {height} x {width}; models take square ones")
    for key, value in wanted.items():
        given = getattr(settings.model, key)
        if given != value:
            raise UserError(f"model.{key} = {given}: the data has {value}; set model.{key}={value}")
    seed_step(settings.seed, 0)
    return build(solve(settings.model)).to(memory_format=torch.channels_last)


def test(trainer: Trainer, cost: Complexity) -> dict:
    """Tests the best weights; returns what `results.json` holds: accuracies as fractions, MACs in G, memory in MiB.

    `target_gmacs` is what merging was asked to cost, also where it was a ratio; None where no budget was asked for.
    """
    model, progress, settings = trainer.model, trainer.progress, trainer.settings
    best_step = load_weights(model, trainer.data, trainer.folder / "best.pt")["step"]
    test = trainer.evaluate(trainer.data.test)
    images = progress.step * settings.train.batch_size * settings.train.accumulate
    asked = target_macs(settings.model)
    return {
        "name": settings.name,
        "model": settings.model.name,
        "data": settings.data.name,
        "seed": settings.seed,
        "test_images": test.n,
        "test_loss": test.loss,
        **{f"test_{name}": value for name, value in test.metrics.items()},
        "val_top1": progress.best if len(trainer.data.val) else None,
        "best_step": best_step,
        "steps": progress.step,
        "epochs": settings.train.epochs,
        "train_images": len(trainer.data.train),
        "data_sha256": trainer.fingerprint,
        "params": cost.params,
        "gmacs": cost.macs / 1e9,
        "target_gmacs": None if asked is None else asked / 1e9,
        "activations": cost.activations,
        "tokens": cost.tokens,
        "removed": model.schedule,
        "seconds": progress.seconds,
        "images_per_second": images / progress.seconds,
        "peak_memory_mib": peak_memory(trainer.device),
        "precision": trainer.precision,
        "device": device_name(trainer.device),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def load_weights(model: nn.Module, data: Data, path: Path) -> dict:
    """Loads a checkpoint's weights into the model; returns the checkpoint.

    Raises:
        UserError: no such checkpoint, a damaged one, another model's, or one for other classes than the data's.
    """
    state = checkpoint.load(path)
    if state["classes"] != data.classes:
        raise UserError(f"{path}: trained on classes {_few(state['classes'])}; the data has {_few(data.classes)}")
    checkpoint.load_model_state(model, state["model"], str(path))
    return state


def _few(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


@dataclass(frozen=True)
class FinishedRun:
    """A run folder read back."""

    settings: RunSettings  # what the model was built from: a budget is solved
    data: Data
    model: nn.Module  # with the checkpoint's weights, on its device
    results: dict | None  # results.json, if the run came to its end
    as_trained: bool  # merging is what it was in training


def load_run(folder: Path, overrides: Iterable[str] = (), which: str = "best", data: Data | None = None) -> FinishedRun:
    """Reads a run folder back: its settings, its data, its model with the weights of `best.pt` or `last.pt`.

    Args:
        folder: the run's.
        overrides: what to change of its settings. Any run can merge otherwise than it did while it was trained.
        which: of the checkpoints.
        data: the run's data, where they are loaded already.

    Raises:
        UserError: no run there, or what `load_weights` says.
    """
    settings, as_trained = read_settings(folder, overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = data or build_data(settings.data, settings.split, settings.seed)
    model = build_for(settings, data).to(pick_device(settings.device))
    load_weights(model, data, folder / f"{which}.pt")
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else None
    return FinishedRun(settings, data, model, results, as_trained)


def read_settings(folder: Path, overrides: Iterable[str] = ()) -> tuple[RunSettings, bool]:
    """A run's settings with overrides, a budget solved; and whether merging is what it was in training.

    Raises:
        UserError: no run there, a wrong override, or merging by a learned metric that its weights do not have.
    """
    file = folder / "settings.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: not a run folder (it has no settings.yaml); give the folder that training printed")
    stored, settings = load_settings(str(file)), load_settings(str(file), overrides)
    trained, merge = (getattr(s.model, "merge", None) for s in (stored, settings))
    if trained and merge and (trained.compared_by() == "learned") != (merge.compared_by() == "learned"):
        has, fix = "has no", "use a method and a merge.metric that learn nothing"
        if merge.compared_by() != "learned":
            has, fix = "has a", "add merge.metric=learned"
        metric = f"model.merge.metric = {merge.compared_by()!r} ({merge.method})"
        raise UserError(f"{metric}: {folder} {has} learned metric among its weights; {fix}")
    return with_budget(settings), trained == merge


def evaluate_run(run: FinishedRun, split: str, first: int | None = None) -> Evaluation:
    """A finished run's model on its `test` or `val` images, or on the first few batches of them.

    Raises:
        UserError: the run has no validation images.
    """
    arrays, s = getattr(run.data, split), run.settings
    if not len(arrays):
        raise UserError(f"--split {split}: the run has no such images (split.val = {s.split.val}); use --split test")
    device = next(run.model.parameters()).device
    batches = islice(eval_batches(arrays, s.train.batch_size, run.data.mean, run.data.std), first)
    return evaluate(run.model, batches, len(run.data.classes), device, pick_autocast(s.train.precision, device))
