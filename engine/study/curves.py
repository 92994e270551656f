"""Draws runs: their curves over the training, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from engine.study.table import kind
from engine.tasks import TASKS, task_with_metric, title_of
from models.settings import UserError

# Tags in metrics.jsonl, for training and for validation.
LOSS = ("train/loss", "val/loss")
SCORES = {task.main_metric: ("train/accuracy", f"val/{task.main_metric}") for task in TASKS.values()}


def curves(folders: Sequence[Path]) -> Figure:
    """Draws loss and main metric at the end of each epoch, by optimizer step: training dashed, validation solid.

    Runs that differ only in the seed have the same colour. Training does not log average precision; for such runs its
    line shows another score, which the caption names.

    Args:
        folders: run folders.

    Raises:
        UserError: a folder does not have the metrics of a single epoch with validation.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours: dict[str, str] = {}
    metrics: dict[str, None] = {}  # in the order in which they appear
    for folder in folders:
        (metric, epochs), group = _epochs(folder), kind(folder)
        metrics[metric] = None
        name = None if group in colours else folder.name  # one entry of the legend for all seeds
        colour = colours.setdefault(group, f"C{len(colours) % 10}")
        steps = [epoch["step"] for epoch in epochs]
        for axes, (training, validation), unit in ((left, LOSS, 1), (right, SCORES[metric], 100)):
            axes.plot(steps, [unit * epoch[training] for epoch in epochs], "--", color=colour, lw=1)
            axes.plot(steps, [unit * epoch[validation] for epoch in epochs], color=colour, lw=1.6, label=name)
    for axes, label in ((left, "loss"), (right, " or ".join(title_of(metric) for metric in metrics) + ", %")):
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(_caption(folders, metrics), fontsize=9, color="0.35")
    return figure


def _caption(folders: Sequence[Path], metrics: Iterable[str]) -> str:
    """Returns a caption that explains the two kinds of lines."""
    augmented = any(any(RunFolder(folder).settings.augment.model_dump().values()) for folder in folders)
    training = "training, on augmented images" if augmented else "training"
    caption = f"dashed: {training}; solid: validation"
    for task in map(task_with_metric, metrics):
        if task.training_score_title:
            caption += f" ({task.score_title}; training: {task.training_score_title})"
    return caption


def _epochs(folder: Path) -> tuple[str, list[dict]]:
    """Returns the name of the main metric and, for each epoch with validation, the metrics of its last step."""
    file = RunFolder(folder).metrics_file
    if not file.is_file():
        raise UserError(f"{folder}: no {file.name}; give run folders")
    records: dict[int, dict] = {}
    for record in metrics_of(file):
        records.setdefault(record["step"], {}).update(record)
    for metric, tags in SCORES.items():
        drawn = [record for record in records.values() if all(record.get(tag) is not None for tag in (*LOSS, *tags))]
        if drawn:
            return metric, drawn
    raise UserError(f"{folder}: no epoch with validation to draw (no validation images, or stopped before its end)")


def accuracy_by_cost(points: Sequence[tuple[str, float, float]], title: str, metric: str = "accuracy") -> Figure:
    """Draws accuracy, or another metric, against cost.

    Args:
        points: label, GMACs of an image, and the metric as a fraction, for each point; a line joins the points by cost.
        title: the figure's title.
        metric: name of the metric, for the axis.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    labels, gmacs, accuracies = zip(*sorted(points, key=lambda point: point[1]))
    axes.plot(gmacs, [100 * accuracy for accuracy in accuracies], "o-", lw=1.2, ms=4)
    for label, x, y in zip(labels, gmacs, accuracies):
        axes.annotate(label, (x, 100 * y), xytext=(4, -10), textcoords="offset points", fontsize=8, color="0.35")
    axes.set(xlabel="GMACs of an image", ylabel=f"{metric}, %")
    axes.set_title(title, fontsize=9, color="0.35")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
