"""Explains a run's answers on image files, which are read as the run reads them: the maps of each method, and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from engine.data.loading.inputs import read_images, reading_settings
from engine.data.loading.loader import Normalise, resized
from engine.explain.drawing import Heat
from engine.measure.ensembles import evaluate_run
from engine.runs.restore import FinishedRun, TrainedModel
from engine.wording import few
from models.explain import EXPLAINERS, explain
from models.settings import UserError, nearest

GOOD_FIT = 0.5  # of LIME's surrogate: below, its weights say little about the model
BATCH = 1  # images at a time: a method keeps the graph, whose attention matrices take 1.6 GB for ViT-L at 512 px


@dataclass(frozen=True)
class Explained:
    """N images, explained by one method with one model.

    Attributes:
        method: a key of EXPLAINERS.
        relevance: (N, rows, columns), on the CPU.
        target: (N,) int64: the classes that are explained.
        probabilities: (N, classes).
        classes: their names.
        notes: what the method says about each image besides.
    """

    method: str
    relevance: Tensor
    target: Tensor
    probabilities: Tensor
    classes: Sequence[str]
    notes: Sequence[Mapping[str, Any]]

    def heat(self, position: int, title: str = "") -> Heat:
        """One image's map, to be drawn."""
        name = self.classes[int(self.target[position])]
        signed = EXPLAINERS[self.method].signed
        return Heat(title or f"{self.method}: {name}", self.relevance[position], signed, in_words(self.notes[position]))


def in_words(note: Mapping[str, Any]) -> str:
    """A method's note about an image, in words; a surrogate that fits badly is said to."""
    parts = []
    for key, value in note.items():
        number = f"{value:.2f}" if isinstance(value, float) else str(value)
        poor = ", a poor fit" if key == "r2" and value < GOOD_FIT else ""
        parts.append(f"{'R²' if key == 'r2' else key} {number}{poor}")
    return ", ".join(parts)


def split_options(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Separates options of methods, such as `lime.samples=200`, from overrides of a run, such as `merge.r=4`.

    Returns:
        The overrides of the run, and the options of each method.

    Raises:
        UserError: an option that the method does not have.
    """
    rest: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    for item in overrides:
        key, _, value = item.partition("=")
        method, _, option = key.partition(".")
        if method not in EXPLAINERS:
            rest.append(item)
        elif option not in EXPLAINERS[method].options:
            known = ", ".join(EXPLAINERS[method].options) or "none"
            raise UserError(f"{key}: not an option of {method}; known: {known}")
        else:
            options.setdefault(method, {})[option] = yaml.safe_load(value)
    return rest, options


def class_number(classes: Sequence[str], text: str) -> int:
    """The number of a class that is given by its name or by its number.

    Raises:
        UserError: there is no such class; the message names the nearest ones.
    """
    if text in classes:
        return list(classes).index(text)
    if text.isdigit() and int(text) < len(classes):
        return int(text)
    if text.lstrip("-").isdigit():
        raise UserError(f"--target {text}: no such class; the run has 0 to {len(classes) - 1}: {few(list(classes))}")
    raise UserError(f"--target {text}: no such class; {nearest(text, list(classes))}")


def read(run: TrainedModel, files: Mapping[str, Path]) -> Tensor:
    """Reads image files as tools/predict.py does: uint8 (N, C, size, size).

    Raises:
        UserError: a file that cannot be read; the message names the first.
    """
    reading = reading_settings(run.settings.data, run.settings.model)
    images, unreadable = read_images(list(files.values()), reading, run.settings.model.in_chans)
    for position, why in unreadable.items():
        raise UserError(f"--images {list(files.values())[position]}: cannot be read ({why}); leave it out")
    return images


def mistaken(runs: Sequence[FinishedRun], count: int) -> tuple[list[str], list[Tensor]]:
    """The test images that the first run gets wrong, the most confident first.

    Args:
        runs: with their data; all have the same test images.
        count: how many at most.

    Returns:
        A name of each, which says what it is and what it was taken for; and for each run the images, uint8
        (N, C, H, W).

    Raises:
        UserError: there are no test images, none is wrong, images have several labels, or the runs' images differ.
    """
    first = runs[0]
    if not first.settings.data.task.one_class:
        raise UserError("--wrong: for images with one class each; give --images")
    if any(not torch.equal(run.data.test.labels, first.data.test.labels) for run in runs):
        raise UserError("--wrong: the runs have different test images; give --images")
    mistakes = evaluate_run(first, "test", keep_mistakes=count).mistakes
    if not mistakes:
        raise UserError(f"--wrong: {first.run} gets all of its {len(first.data.test)} test images right")
    classes, positions = first.classes, torch.tensor([mistake.position for mistake in mistakes])
    names = [f"{m.position} {classes[m.label]} as {classes[m.predicted]} {100 * m.confidence:.0f}%" for m in mistakes]
    pixels = [run.data.test.read(positions) for run in runs]
    return names, [
        images if run.data.resize is None else resized(images.float(), run.data.resize).round().clamp(0, 255).byte()
        for run, images in zip(runs, pixels, strict=True)
    ]


def explained(
    run: TrainedModel,
    images: Tensor,
    method: str,
    target: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[float], object] = lambda done: None,
) -> Explained:
    """Explains images with a run's model.

    Args:
        run: the run; its model computes in fp32.
        images: uint8 (N, C, H, W), from `read`.
        method: a key of EXPLAINERS.
        target: the class; None: for each image the class that the model predicts.
        options: the method's own.
        progress: called with how many images are done, where a method reports it also with parts of a batch.

    Raises:
        UserError: of `models.explain.explain`.
    """
    device, parts = next(run.model.parameters()).device, []
    normalise, task = Normalise(run.mean, run.std), run.settings.data.task
    for start in range(0, len(images), BATCH):
        batch = normalise(images[start : start + BATCH]).to(device)

        def report(done: int, total: int, start: int = start, count: int = len(batch)) -> None:
            progress(start + count * done / total)

        parts.append(explain(run.model, batch, method, target, report, **(options or {})))
        progress(start + len(batch))
    return Explained(
        method=method,
        relevance=torch.cat([part.relevance for part in parts]).cpu(),
        target=torch.cat([part.target for part in parts]).cpu(),
        probabilities=task.probabilities(torch.cat([part.logits for part in parts]).cpu()),
        classes=run.classes,
        notes=[note for part in parts for note in part.notes],
    )
