"""Draws runs: their curves over the training, and accuracy against cost of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from engine.study.compare.lines import unique
from engine.study.pareto.style import colours
from engine.study.table import common_name, kind
from engine.tasks import TASKS, task_with_metric, title_of
from models.settings import UserError

# Tags in metrics.jsonl, for training and for validation.
LOSS = ("train/loss", "val/loss")
SCORES = {task.main_metric: ("train/accuracy", f"val/{task.main_metric}") for task in TASKS.values()}
# What the horizontal axis may be -> its label.
OVER = {"step": "optimizer step", "epoch": "epoch", "seconds": "training time, s, at the run's mean speed"}
HIGH = 18  # largest number of names in a column of a legend
INSIDE = 4  # largest number of names in a legend inside the axes


def curves(folders: Sequence[Path], over: str = "step") -> Figure:
    """Draws loss and main metric at the end of each epoch: training dashed, validation solid.

    Runs that differ only in seed and fold have one colour, one name in the legend, and thin lines if there are several.
    Training does not log average precision; for such runs its line shows another score, which the caption names.

    Args:
        folders: run folders.
        over: what the horizontal axis is, a key of OVER.

    Raises:
        UserError: a folder does not have the metrics of a single epoch with validation; or epochs or seconds are asked
            for, and a run is not finished.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(kind(folder), []).append(folder)
    metrics: dict[str, None] = {}  # in the order in which they appear
    names = unique([common_name([RunFolder(one).settings.name for one in group]) for group in groups.values()])
    for (name, group), colour in zip(zip(names, groups.values()), colours(len(groups))):
        thickness = 1.6 if len(group) == 1 else 0.8
        for folder in group:
            metric, epochs = _epochs(folder)
            metrics[metric] = None
            xs, label = _places(folder, epochs, over), name if folder == group[0] else None
            for axes, (training, validation), unit in ((left, LOSS, 1), (right, SCORES[metric], 100)):
                axes.plot(xs, [unit * epoch[training] for epoch in epochs], "--", color=colour, lw=0.6 * thickness)
                axes.plot(xs, [unit * epoch[validation] for epoch in epochs], color=colour, lw=thickness, label=label)
    for axes, label in ((left, "loss"), (right, " or ".join(title_of(metric) for metric in metrics) + ", %")):
        axes.set(xlabel=OVER[over], ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if over != "seconds":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _add_legend(figure, names)
    figure.suptitle(_caption(folders, metrics), fontsize=9, color="0.35")
    return figure


def _add_legend(figure: Figure, names: Sequence[str]) -> None:
    """Adds the names, inside the axes where they are few; matplotlib leaves out names that begin with "_"."""
    right = figure.axes[1]
    handles = [line for line in right.lines if line.get_linestyle() == "-" and line.get_label() in names]
    labels = [f" {name}" if name.startswith("_") else name for name in names]
    if len(names) <= INSIDE:
        legend = right.legend(handles, labels, frameon=False, fontsize=8, loc="best")
    else:
        columns = -(-len(names) // HIGH)
        legend = figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right upper", ncols=columns)
        figure.set_figwidth(9 + columns * (0.5 + 0.068 * max(map(len, names))))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _places(folder: Path, epochs: Sequence[dict], over: str) -> list[float]:
    """Returns where each epoch stands on the horizontal axis."""
    steps = [epoch["step"] for epoch in epochs]
    if over == "step":
        return steps
    results = RunFolder(folder).read_results()
    if results is None:
        raise UserError(f"{folder}: not a finished run, whose {over} are known by step only; use --over step")
    return [step * (results.epochs if over == "epoch" else results.seconds) / results.steps for step in steps]


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
