"""Prints what a training run measured, and what all folds measured together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.data.balance import are_unequal
from engine.measure.intervals import percent, spread_lines, wilson
from engine.runs.records.folds_report import ConfusedPair, FoldsReport
from engine.runs.records.results import Results
from engine.tables import Column, print_table
from engine.tasks import Task, task_with_metric
from engine.wording import NOT_COUNTED, counted, fixed, shown

WORST = 5  # classes, and pairs of classes, that the report on all folds names


def print_run(results: Results, folder: Path) -> None:
    """Prints the accuracy, size, cost and duration of one run.

    Args:
        results: what `results.json` holds.
        folder: the run folder, which the last lines name.
    """
    print()
    print_accuracy(results)
    trained = "" if results.trained_share == 1 else f", {100 * results.trained_share:.2f} % trained"
    print(f"parameters      {results.params / 1e6:.3f} M{trained}")
    gmacs = NOT_COUNTED if results.gmacs is None else f"{fixed(results.gmacs, 4)}  (one MAC is two FLOPs)"
    print(f"GMACs           {gmacs}")
    print(f"training        {results.seconds:.0f} s, {results.images_per_second:.0f} images/s")
    print(f"run folder      {folder}")
    print(f"curves          tensorboard --logdir {folder}")


def print_accuracy(results: Results) -> None:
    """Prints the metrics on the test images, or on the validation images where there are no test images."""
    task = task_with_metric(results.metric)
    if results.test_images:
        others = [
            f"{task.titles[name]} {100 * score:.2f} %, "
            for name, score in results.test_metrics.items()
            if name not in (results.metric, task.class_metric) and name in task.titles and score is not None
        ]
        score = f"{100 * results.test_score:.2f} %"
        print(f"{f'test {task.score_title}':<14}  {score}  ({''.join(others)}{counted(results.test_images, 'image')})")
        if results.test_interval:
            print(f"95 % interval   {percent(results.test_interval)} %")
        _print_class_scores(results, task)
        return
    _print_unmeasured(results, task)
    _print_class_scores(results, task)


def _print_unmeasured(results: Results, task: Task) -> None:
    """Prints why there is no accuracy on test images, and that on the validation images, if there are any."""
    reason = f" ({results.no_test})" if results.no_test else ""
    print(f"{f'test {task.score_title}':<14}  not measured: no test images{reason}")
    if results.val_score is None or not results.val_images:
        return
    best, images = results.val_score, results.val_images
    selected_by_main = results.selected_by in (None, results.metric)
    title = task.score_title if selected_by_main else task.titles[results.selected_by]
    print(f"{f'val {title}':<14}  {100 * best:.2f} %  (best of the epochs, so rather high; {counted(images, 'image')})")
    if task.counts_images and selected_by_main:
        interval = percent(wilson(round(best * images), images))
        print(f"95 % interval   {interval} %  (of one epoch; the best one's is lower)")


def _print_class_scores(results: Results, task: Task) -> None:
    """Prints the mean over classes and the worst class where classes are unequal, and classes without test images."""
    scores, trained = results.class_scores, results.train_class_images or {}
    if scores is None:
        return
    names = list(results.class_images)
    unequal = are_unequal(scores.images, list(trained.values()))
    of = results.classes_of
    for line in scores.lines(task, names, of) if unequal else scores.untested_lines(names, of):
        print(line)


def print_folds(report: FoldsReport, folder: Path) -> None:
    """Prints the metric of each fold, of all folds together, and the classes that are confused most.

    Args:
        report: what `folds.json` holds.
        folder: the folder of all folds, which the last lines name.
    """
    title = f"test {task_with_metric(report.metric).score_title}"
    columns = [Column("fold", words=True), *map(Column, (f"{title}, %", "95 % interval", "images", "training, s"))]
    rows = []
    for fold in report.fold:
        interval = percent(fold.test_interval) if fold.test_interval else "-"
        rows.append([str(fold.fold), f"{100 * fold.test_score:.2f}", interval, str(fold.images), f"{fold.seconds:.0f}"])
    balanced = [fold.test_balanced_accuracy for fold in report.fold if fold.test_balanced_accuracy is not None]
    if report.unequal and len(balanced) == len(rows):
        columns.append(Column("balanced, %"))
        rows = [[*row, f"{100 * score:.2f}"] for row, score in zip(rows, balanced)]
    print()
    print_table(columns, rows)
    print()
    for line in [*spread_lines(report.spread), *_class_lines(report)]:
        print(line)
    if report.confused is not None:
        _print_confused(report.class_accuracy or {}, report.confused)
    print(f"training        {report.seconds:.0f} s in all")
    pictures = "" if report.confused is None else ", confusion.png, confused.png"
    print(f"report          {folder}/folds.json{pictures}")
    print(f"curves          tensorboard --logdir {folder}")


def _class_lines(report: FoldsReport) -> list[str]:
    """Returns lines about single classes where they are unequal; a report of an older version has none."""
    scores, names = report.class_scores, list(report.class_images or {})
    if scores is None:
        return []
    task = task_with_metric(report.metric)
    named = report.confused is not None  # `_print_confused` names the worst classes
    return scores.lines(task, names, worst=not named) if report.unequal else scores.untested_lines(names)


def _print_confused(class_accuracy: Mapping[str, float | None], pairs: Sequence[ConfusedPair]) -> None:
    """Prints the classes with the lowest accuracy and the pairs that are confused most."""
    measured = {name: accuracy for name, accuracy in class_accuracy.items() if accuracy is not None}
    worst = sorted(measured, key=lambda name: (measured[name], name))[:WORST]
    print("worst classes   " + ", ".join(f"{shown(name)} {100 * measured[name]:.0f} %" for name in worst))
    label = "most confused"
    for pair in pairs[:WORST]:
        first, second = map(shown, pair.classes)
        print(f"{label:<14}  {first} as {second} {pair.first_as_second}, {second} as {first} {pair.second_as_first}")
        label = ""
