"""A run from its settings: build, train, test, write down. And a finished run's folder back into a model."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine import checkpoint
from engine.complexity import measure
from engine.config import RunSettings, load_settings, to_yaml
from engine.data import Data, build_data
from engine.evaluate import Evaluation
from engine.run import write_json_atomic, write_text_atomic
from engine.runtime import commit, device_name, peak_memory, pick_device, seed_step, versions
from engine.tracking import Tracker
from engine.train import Trainer
from models import MODELS
from models.settings import UserError

log = logging.getLogger("hybridmerge")


def start_log(folder: Path) -> None:
    """Sends the project's log to the terminal and to `log.txt` in the run folder."""
    log.setLevel(logging.INFO)
    log.handlers.clear()
    for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "log.txt")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        log.addHandler(handler)


def run(settings: RunSettings, folder: Path, resume: bool) -> dict:
    """Trains by `settings` in an opened run folder, tests once at the end, and writes `results.json`.

    Args:
        settings: checked settings.
        folder: the run's own folder, locked by the caller.
        resume: go on from `last.pt` if there is one.

    Returns:
        What `results.json` holds.
    """
    start_log(folder)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    write_text_atomic(folder / "settings.yaml", to_yaml(settings))
    device = pick_device(settings.device)
    data = build_data(settings.data, settings.split, settings.seed)
    model = build_for(settings, data).to(device)
    state = checkpoint.load(folder / "last.pt") if resume and (folder / "last.pt").exists() else None

    with Tracker(folder, state["progress"]["step"], state["lines"]) if state else Tracker(folder) as tracker:
        trainer = Trainer(model, data, settings, folder, tracker)
        if state:
            trainer.resume(state)
        return _train_and_test(trainer)


def _train_and_test(trainer: Trainer) -> dict:
    model, data, settings, folder, tracker = (
        trainer.model, trainer.data, trainer.settings, trainer.folder, trainer.tracker)  # fmt: skip
    log.info("%s on %s: %d training, %d validation, %d test images, %d classes", settings.name, device_name(trainer.device),
             len(data.train), len(data.val), len(data.test), len(data.classes))  # fmt: skip
    log.info("tokens removed by each block: %s; left: %s", model.schedule, model.tokens_per_block())
    tracker.curve("tokens_left_after_block", model.tokens_per_block())
    trainer.fit()

    best = checkpoint.load(folder / "best.pt")
    checkpoint.load_model_state(model, best["model"], str(folder / "best.pt"))
    results = summarise(settings, trainer, trainer.evaluate(data.test), best["step"])
    write_json_atomic(folder / "results.json", results)
    measured = {f"hparam/{key}": results[key] for key in ("test_top1", "gmacs", "params", "seconds")}
    tracker.hparams(results["steps"], settings.model_dump(mode="json"), measured)
    return results


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
    return MODELS[settings.model.name][1](settings.model).to(memory_format=torch.channels_last)


def summarise(settings: RunSettings, trainer: Trainer, test: Evaluation, best_step: int) -> dict:
    """What `results.json` holds: accuracies as fractions, MACs in G, memory in MiB."""
    model, progress = trainer.model, trainer.progress
    cost = measure(model, (model.in_chans, model.img_size, model.img_size))
    images = progress.step * settings.train.batch_size * settings.train.accumulate
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
        "params": cost.params,
        "gmacs": cost.macs / 1e9,
        "activations": cost.activations,
        "tokens": cost.tokens,
        "removed": model.schedule,
        "seconds": progress.seconds,
        "images_per_second": images / progress.seconds,
        "peak_memory_mib": peak_memory(trainer.device),
        "precision": "bf16" if trainer.autocast._enabled else "fp32",
        "device": device_name(trainer.device),
        "versions": versions(),
        "commit": commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@dataclass(frozen=True)
class FinishedRun:
    """A run folder read back."""

    settings: RunSettings
    data: Data
    model: nn.Module  # with its best weights, on its device
    results: dict | None  # results.json, if the run came to its end


def load_run(folder: Path, overrides: list[str] = (), which: str = "best") -> FinishedRun:
    """Reads a run folder back: its settings, its data, its model with the weights of `best.pt` or `last.pt`.

    Raises:
        UserError: no run there, no checkpoint yet, or classes that are not the data's.
    """
    if not (folder / "settings.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no settings.yaml); give the folder that training printed")
    settings = load_settings(str(folder / "settings.yaml"), list(overrides))
    data = build_data(settings.data, settings.split, settings.seed)
    model = build_for(settings, data).to(pick_device(settings.device))
    state = checkpoint.load(folder / f"{which}.pt")
    if state["classes"] != data.classes:
        raise UserError(f"{folder}: trained on classes {state['classes'][:5]}..., the data has {data.classes[:5]}...")
    checkpoint.load_model_state(model, state["model"], str(folder / f"{which}.pt"))
    results = folder / "results.json"
    return FinishedRun(settings, data, model, json.loads(results.read_text()) if results.is_file() else None)
