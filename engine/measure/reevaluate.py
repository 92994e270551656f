"""Evaluates finished runs again, from their folders alone (tools/eval.py).

A single run is evaluated by itself, several runs together by their mean probabilities, and the runs of all folds fold
by fold, each on the images that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.cost.images import ImageCosts, ImageCounter
from engine.cost.macs import measure_or_say
from engine.data.balance import are_unequal
from engine.data.names import places
from engine.measure.ensembles import evaluate_run, evaluate_together, load_folds
from engine.measure.evaluate import Evaluation
from engine.measure.intervals import spread
from engine.measure.metrics import METRICS
from engine.measure.predictions import Predictions, predictions_of
from engine.runs.folder import RunFolder
from engine.runs.records.class_scores import ClassScores, classes_to_json, pooled_scores
from engine.runs.records.folds_report import Spread
from engine.runs.restore import FinishedRun, load_run
from engine.tasks import Task, task_with_metric
from engine.wording import fixed
from models.interface import merging_method, removed_per_block
from models.settings import UserError

Group = Sequence[tuple[Path, FinishedRun]]  # runs that are evaluated together, with their folders
F1_AT_THRESHOLDS = "f1 at the run's thresholds"


@dataclass(frozen=True)
class Reevaluation:
    """The scores of a run, or of several together, on one split: on all its images, or on those of one fold."""

    folders: list[Path]
    evaluation: Evaluation
    metrics: dict[str, float]  # fractions; includes F1 at the run's thresholds if it has any
    labels: Tensor
    classes: list[str]
    unequal: bool  # whether the classes are, among these images or among those of training
    costs: list[ImageCosts | None]  # of each run, where its number of tokens depends on the image

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return task_with_metric(next(iter(self.evaluation.metrics)))

    def to_json(self) -> dict[str, Any]:
        """Returns the entry for tools/eval.py --json."""
        folders = [str(folder) for folder in self.folders]
        scores = {"runs": folders, "images": self.evaluation.n, "loss": self.evaluation.loss}
        gmacs = [None if costs is None else costs._asdict() for costs in self.costs]
        of_images = {"gmacs_of_images": gmacs} if any(gmacs) else {}
        classes = classes_to_json(self.evaluation.classes, self.task, self.classes)
        return {**scores, **of_images, **classes, **self.metrics}


def load_groups(folders: Sequence[Path], overrides: Sequence[str] = (), which: str = "best") -> Iterator[Group]:
    """Loads runs in groups that are evaluated together: all runs or, for folders of all folds, those of each fold.

    Args:
        folders: run folders, or folders of all folds.
        overrides: changes to the runs' settings, such as "merge.r=4".
        which: which checkpoint of each run to load, "best" or "last".

    Yields:
        One group of runs, or one for each fold, loaded on demand.

    Raises:
        UserError: a folder is given twice, the folders are of both kinds, or a run cannot be loaded.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if resolved[number] in resolved[:number]:
            raise UserError(f"--run {folder}: given twice; give it once")
    stored = [RunFolder(folder) for folder in folders]
    with_folds = [run for run in stored if run.holds_folds]
    single = [run for run in stored if not run.holds_folds]
    if with_folds and single:
        raise UserError(f"--run {single[0]}: is one run, and {with_folds[0]} holds folds; give folders of one kind")
    if with_folds:
        yield from zip(*(load_folds(run, overrides, which) for run in stored))
    else:
        yield [(run.path, load_run(run, overrides, which)) for run in stored]


def reevaluate(group: Group, split: str, *, mirror: bool = False, keep_logits: bool = False) -> Reevaluation:
    """Evaluates a run, or several together.

    Args:
        group: the runs.
        split: "test" or "val".
        mirror: average probabilities over each image and its mirror image.
        keep_logits: keep the logits of every image, for `pooled_predictions`.

    Raises:
        UserError: a run has no such images, or the runs' classes or images differ.
    """
    folders, runs = [folder for folder, _ in group], [run for _, run in group]
    with ExitStack() as stack:
        counters = [stack.enter_context(ImageCounter(run.model, run.settings.model)) for run in runs]
        if len(runs) == 1:
            evaluation, metrics = _evaluate_alone(runs[0], split, mirror=mirror, keep_logits=keep_logits)
        else:
            evaluation = evaluate_together(folders, runs, split, mirror=mirror)
            metrics = evaluation.metrics
    costs = [counter.costs() for counter in counters]
    data, classes = runs[0].data, evaluation.classes
    unequal = are_unequal(data.train_class_images, [] if classes is None else classes.images)
    return Reevaluation(folders, evaluation, metrics, getattr(data, split).labels, data.classes, unequal, costs)


def _evaluate_alone(
    run: FinishedRun, split: str, *, mirror: bool, keep_logits: bool
) -> tuple[Evaluation, dict[str, float]]:
    """Evaluates one run; if its results contain thresholds, the metrics include F1 at these thresholds."""
    thresholds = run.results.thresholds if run.results else None
    if not thresholds:
        evaluation = evaluate_run(run, split, keep_logits=keep_logits, mirror=mirror)
        return evaluation, evaluation.metrics
    evaluation = evaluate_run(run, split, keep_logits=True, mirror=mirror)
    assert evaluation.logits is not None
    order = places(run.data.classes, list(thresholds))
    if order is None:
        raise UserError(
            f"{run.run.results_file}: its thresholds are those of other classes; delete it and test the run again with "
            f"--resume {run.run}"
        )
    by_class = torch.tensor(list(thresholds.values()), dtype=torch.float64)[order]
    f1 = f1_at_thresholds(evaluation.logits, getattr(run.data, split).labels, by_class)
    return evaluation, {**evaluation.metrics, F1_AT_THRESHOLDS: f1}


def f1_at_thresholds(logits: Tensor, labels: Tensor, thresholds: Tensor) -> float:
    """Returns the mean F1 score over labels, each predicted with its own threshold.

    Args:
        logits: (N, classes).
        labels: (N, classes) of 0 and 1.
        thresholds: float64 (classes,), probabilities. In float32 a threshold could round to a neighbouring probability.
    """
    predicted = logits.sigmoid().double() >= thresholds
    return METRICS["f1"](len(thresholds))(predicted.long(), labels.long()).item()


def describe_merging(run: FinishedRun, costs: ImageCosts | None = None) -> str:
    """Returns the method, the tokens that each block removes, and the GMACs of a run's model.

    Args:
        run: the run.
        costs: of the images, where the number of tokens depends on the image.
    """
    method = merging_method(run.settings.model) or "none"
    if costs is not None:
        left = ", ".join(f"{tokens:.1f}" for tokens in costs.tokens)
        return f"{method}, tokens left after each block, mean of {costs.images} images: {left}; {costs.in_words()}"
    gmacs = measure_or_say(run.model, settings=run.settings.model).gmacs
    cost = "GMACs not counted" if gmacs is None else f"{fixed(gmacs, 4)} GMACs"
    return f"{method}, tokens removed by each block: {removed_per_block(run.model)}; {cost}"


def over_folds(folds: Sequence[Reevaluation], split: str) -> Spread:
    """Returns mean, standard deviation and intervals over folds; see `engine.measure.intervals.spread`.

    The best epoch was selected on the validation images, so they allow no prediction about new images.
    """
    evaluations = [fold.evaluation for fold in folds]
    scores, sizes = [one.score for one in evaluations], [one.n for one in evaluations]
    summary = spread(scores, sizes, counted=folds[0].task.counts_images)
    return summary if split == "test" else summary.model_copy(update={"pooled": None, "unseen": None})


def pooled_classes(parts: Sequence[Reevaluation]) -> ClassScores | None:
    """Returns the score of each class on the images of all parts together; None where the task has no such scores."""
    classes = [part.evaluation.classes for part in parts if part.evaluation.classes is not None]
    return pooled_scores(classes) if classes else None


def folds_to_json(folds: Sequence[Reevaluation], split: str) -> dict[str, Any]:
    """Returns the entries for tools/eval.py --json about all folds together, named as in `folds.json`."""
    classes = classes_to_json(pooled_classes(folds), folds[0].task, folds[0].classes)
    return {**over_folds(folds, split).model_dump(mode="json"), **classes}


def class_lines(parts: Sequence[Reevaluation], split: str) -> list[str]:
    """Returns lines about the classes of all parts together: the worst one and the mean where they are unequal."""
    scores, names, task = pooled_classes(parts), parts[0].classes, parts[0].task
    if scores is None:
        return []
    unequal = any(part.unequal for part in parts)
    return scores.lines(task, names, split) if unequal else scores.untested_lines(names, split)


def pooled_predictions(parts: Sequence[Reevaluation]) -> Predictions:
    """Returns the predictions on all images of several parts, which must have kept their logits."""
    logits = [part.evaluation.logits for part in parts if part.evaluation.logits is not None]
    assert len(logits) == len(parts), "keep_logits was not set"
    return predictions_of(torch.cat([part.labels for part in parts]), torch.cat(logits), parts[0].task)
