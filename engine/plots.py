"""Pictures of runs, drawn from their `metrics.jsonl`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib.figure import Figure

from engine.compare import kind
from engine.run import replacing
from engine.tracking import METRICS
from models.settings import UserError

# training's tag, validation's, and what both are multiplied by
LOSS = ("train/loss", "val/loss", 1)
ACCURACY = ("train/accuracy", "val/top1", 100)


def curves(folders: Sequence[Path]) -> Figure:
    """Loss and accuracy by optimizer step, at the end of each epoch: training dashed, validation solid.

    Runs that differ in nothing but the seed have one colour.

    Raises:
        UserError: a folder without the metrics of a single epoch with validation.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours: dict[str, str] = {}
    for folder in folders:
        epochs, alike = _epochs(folder), kind(folder)
        name = None if alike in colours else folder.name  # one entry of the legend for all seeds
        colour = colours.setdefault(alike, f"C{len(colours) % 10}")
        steps = [epoch["step"] for epoch in epochs]
        for axes, training, validation, unit in ((left, *LOSS), (right, *ACCURACY)):
            axes.plot(steps, [unit * epoch[training] for epoch in epochs], "--", color=colour, lw=1)
            axes.plot(steps, [unit * epoch[validation] for epoch in epochs], color=colour, lw=1.6, label=name)
    for axes, label in ((left, "loss"), (right, "accuracy, %")):
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle("dashed: training, on augmented images; solid: validation", fontsize=9, color="0.35")
    return figure


def _epochs(folder: Path) -> list[dict]:
    """One record an epoch: what training and validation said at its last step."""
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder}: no {METRICS}; give run folders")
    records: dict[int, dict] = {}
    for line in (folder / METRICS).read_text().splitlines():
        with suppress(ValueError):  # a line that a killed process did not finish
            record = json.loads(line)
            records.setdefault(record["step"], {}).update(record)
    drawn = [tag for *tags, _ in (LOSS, ACCURACY) for tag in tags]
    epochs = [record for record in records.values() if all(record.get(tag) is not None for tag in drawn)]
    if not epochs:
        raise UserError(f"{folder}: no epoch with validation to draw (split.val = 0, or stopped before its end)")
    return epochs


def accuracy_by_cost(points: Sequence[tuple[str, float, float]], title: str) -> Figure:
    """Accuracy against cost: a line through points of label, GMACs of an image, and accuracy as a fraction."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    labels, gmacs, accuracies = zip(*sorted(points, key=lambda point: point[1]))
    axes.plot(gmacs, [100 * accuracy for accuracy in accuracies], "o-", lw=1.2, ms=4)
    for label, x, y in zip(labels, gmacs, accuracies):
        axes.annotate(label, (x, 100 * y), xytext=(4, -10), textcoords="offset points", fontsize=8, color="0.35")
    axes.set(xlabel="GMACs of an image", ylabel="accuracy, %")
    axes.set_title(title, fontsize=9, color="0.35")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    with replacing(path) as file:
        file.write(picture.getvalue())
