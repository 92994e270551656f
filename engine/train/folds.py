"""k-fold cross-validation: a run for each fold in a folder of its own, and a report on all of them.

`split.folds: 5` makes runs/NAME/fold0 to fold4, which are ordinary run folders. When all of them are finished,
runs/NAME gets the report `folds.json`, two pictures, and events for TensorBoard. Each fold is locked, but runs/NAME is
not: several processes can run one fold each (`split.fold`), and the one that finishes last writes the report.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.data import Data, RawData, Split, load_raw
from engine.data.balance import are_unequal
from engine.data.names import same_names
from engine.data.split import folded, split_data, with_test_set
from engine.figures.confusion import confused_figure, confusion_figure
from engine.figures.drawing import draw
from engine.files import write_json_atomic, writing
from engine.measure.confusion import class_accuracy, confusion_matrix, most_confused
from engine.measure.intervals import spread
from engine.measure.predictions import Predictions, read_tested
from engine.runs.class_scores import classes_to_json, pooled_scores
from engine.runs.folder import RunFolder
from engine.runs.folds import check_same_settings, of_all, of_fold
from engine.runs.lock import LOCK
from engine.runs.log import start_log
from engine.runs.results import Results
from engine.runs.tracking import Tracker
from engine.settings.changes import changed_on_resume
from engine.settings.schema import RunSettings
from engine.tasks import task_with_metric
from engine.train.experiment import check_unchanged, run_experiment
from engine.train.folds_report import read_report
from models.settings import UserError

log = logging.getLogger("hybridmerge")

# Fields that are the same in all folds; the report takes them from the first.
SHARED = (
    "name",
    "model",
    "data",
    "seed",
    "metric",
    "method",
    "params",
    "trained_params",
    "trained_share",
    "gmacs",
    "epochs",
    "precision",
    "device",
    "versions",
    "commit",
)


def run_folds(settings: RunSettings, folder: Path, *, resume: bool = False) -> dict[int, Results]:
    """Runs all folds one after the other, or the one that `split.fold` names, each as `run_experiment` does.

    A signal that stops one fold stops all.

    Args:
        settings: with split.folds.
        folder: the folder of all folds.
        resume: whether to skip finished folds and continue stopped ones; the others are started. With more epochs or
            steps than before, finished folds continue as well.

    Returns:
        The results of each fold that was to be run.

    Raises:
        UserError: the settings are not those of the folds that exist already; the folder holds files although `resume`
            is off, or does not exist although it is on; or see `run_experiment`.
    """
    run = RunFolder(folder)
    numbers = range(settings.split.folds) if settings.split.fold is None else [settings.split.fold]
    _check_same_settings(of_all(settings), run, may_go_on=resume)
    if not resume:
        _check_room(run, one_fold=settings.split.fold is not None)
    elif not folder.is_dir():
        raise UserError(f"{folder}: no run to resume here; start one without --resume, or check name= and out=")
    else:
        for number in numbers:  # of all folds before the first one is trained, which can take hours
            check_unchanged(of_fold(settings, number), run.fold(number))

    def begin(of_one: RunSettings) -> None:
        all_folds = RunFolder(folder)  # read again: another process may have begun meanwhile
        whole = of_all(of_one)  # with the number of classes, which the data have said by now
        _check_same_settings(whole, all_folds, may_go_on=resume)
        all_folds.write_settings(whole)
        with writing(all_folds.folds_file):
            all_folds.folds_file.unlink(missing_ok=True)  # this fold will have other results than it tells

    results = {}
    for number in numbers:
        fold = run.fold(number)
        resume_fold = resume and fold.path.is_dir()
        with fold.lock(resume=resume_fold):
            try:
                results[number] = run_experiment(of_fold(settings, number), fold.path, resume=resume_fold, begin=begin)
            except SystemExit:  # a signal; how to resume this fold is printed already
                if settings.split.fold is None:
                    print(f"to resume all folds: tools/train.py --resume {folder}", flush=True)
                raise
    return results


def summarise(settings: RunSettings, folder: Path) -> dict:
    """Writes the report on all folds, unless it exists: `folds.json`, `confusion.png`, `confused.png`, and events for
    TensorBoard with both pictures. There are pictures only where each image has one class.

    Returns:
        The content of `folds.json`: accuracies as fractions; `confusion` has for each true class the number of its
        images by predicted class.

    Raises:
        UserError: a fold is not finished or was run with other settings, or the data have changed.
    """
    run = RunFolder(folder)
    if missing := run.unfinished_folds():
        names = ", ".join(map(str, missing))
        raise UserError(f"{folder}: not finished: fold {names}; continue with --resume {folder}")
    whole, folders = of_all(settings), [fold.path for fold in run.folds]
    check_same_settings(run)
    runs = [fold.read_results() for fold in run.folds]
    report, metric = together(whole, runs), runs[0].metric
    start_log()  # the log of the last fold has ended with it
    if (written := read_report(run, report)) is not None:
        return written
    run.check_files()
    raw = load_raw(whole.data)
    for fold, path in enumerate(folders):
        # The machine of the fold may have read other data.
        if fingerprint(raw, of_fold(whole, fold)) != runs[fold].data_sha256:
            log.warning("%s: was run on other labels or pixels than are read here and now", path)
    with Tracker(folder) as tracker:
        tracker.curve(f"fold/test_{metric}", [results.test_score for results in runs])
        tracker.scalars(0, {f"folds/{key}": report[key] for key in ("mean", "std")})
        if whole.data.task.one_class:
            images, predictions = pooled(raw, whole, folders)
            title = f"{whole.name}: {100 * report['pooled']['accuracy']:.2f} % of {len(images)} images, "
            title += f"each predicted in one of {len(runs)} folds"
            # The folds may have read their names in other bytes, from an archive unpacked on another system.
            tested = list(report.get("class_images") or [])
            classes = tested if same_names(tested, raw.classes) else raw.classes
            report |= _confusions(predictions, classes)
            matrix = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
            draw(folder, tracker, 0, "folds/confusion", confusion_figure(matrix, classes, title))
            title = f"{whole.name}: confused most"
            figure = confused_figure(most_confused(matrix), predictions, images, classes, title)
            draw(folder, tracker, 0, "folds/confused", figure)
    report |= {"settings": whole.model_dump(mode="json"), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json_atomic(run.folds_file, report)
    return report


def fingerprint(raw: RawData, settings: RunSettings) -> str:
    """Returns the fingerprint of one fold's data, which its results have as `data_sha256`."""
    raw = with_test_set(raw, settings.split)
    train, val = split_data(raw, settings.split, settings.seed)
    return Data(train, val, raw.test, raw.classes, (), (), task=raw.task).fingerprint()


def together(settings: RunSettings, runs: Sequence[Results]) -> dict:
    """Returns the part of the report that needs results only: mean, spread, intervals, and the pooled accuracy.

    A metric that does not count images, such as mean average precision, has a mean and a spread; the rest is None.
    """
    metric, records = runs[0].metric, [run.to_json() for run in runs]
    accuracies, sizes = [run.test_score for run in runs], [run.test_images for run in runs]
    of_each = (
        f"test_{metric}",
        "test_loss",
        "test_interval",
        f"val_{runs[0].selected_by or metric}",
        "test_balanced_accuracy",
        "worst_class",
        "worst_class_score",
        "worst_class_images",
        "best_step",
        "train_images",
        "seconds",
        "data_sha256",
    )
    scores = [run.class_scores for run in runs if run.class_scores is not None]  # an older version has none
    classes = pooled_scores(scores) if len(scores) == len(runs) else None
    counts = [[*run.train_class_images.values()] for run in runs if run.train_class_images]
    task = task_with_metric(metric)
    return {key: records[0][key] for key in SHARED} | {
        "folds": len(runs),
        "test_seed": settings.split.test_seed,
        **spread(accuracies, sizes, counted=task.counts_images),
        **classes_to_json(classes, task, list(runs[0].class_images or [])),
        "unequal": are_unequal(*counts, [] if classes is None else classes.images),
        "seconds": sum(run.seconds for run in runs),
        "fold": [
            {"fold": i, "images": record["test_images"], **{key: record.get(key) for key in of_each}}
            for i, record in enumerate(records)
        ],
    }


def pooled(raw: RawData, settings: RunSettings, folders: Sequence[Path]) -> tuple[Split, Predictions]:
    """Returns all images of the folds, and for each the prediction of the model that was not trained on it.

    Raises:
        UserError: the `predictions.csv` of a fold cannot be read, or is of other images than the data.
    """
    images, parts = folded(raw, settings.split)
    labels = images.labels.numpy()
    predicted, probabilities = np.zeros_like(labels), np.zeros(len(labels), np.float32)
    for fold, path in enumerate(folders):
        positions = np.flatnonzero(parts == fold)
        tested = images.take(torch.from_numpy(positions))
        predictions = read_tested(RunFolder(path).predictions_file, tested, raw.classes)
        predicted[positions], probabilities[positions] = predictions.predicted, predictions.probabilities
    return images, Predictions(labels, predicted, probabilities)


def _confusions(predictions: Predictions, classes: Sequence[str]) -> dict:
    """Returns the accuracy of each class, the confusion matrix without its zeros, and the most confused pairs."""
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    confusion = {
        name: {classes[i]: int(row[i]) for i in np.flatnonzero(row)} for name, row in zip(classes, matrix, strict=True)
    }
    pairs = [
        {
            "classes": [classes[pair.first], classes[pair.second]],
            "first_as_second": pair.as_second,
            "second_as_first": pair.as_first,
        }
        for pair in most_confused(matrix)
    ]
    return {"class_accuracy": class_accuracy(matrix, classes), "confused": pairs, "confusion": confusion}


def _check_same_settings(whole: RunSettings, run: RunFolder, *, may_go_on: bool) -> None:
    """Raises a UserError for settings other than those of the folds that exist already.

    Args:
        whole: settings for all folds.
        run: the folder of all folds.
        may_go_on: whether more epochs, or steps, are allowed.
    """
    if run.is_run and (changed := changed_on_resume(run.settings, whole, may_go_on=may_go_on)):
        raise UserError(
            f"{changed}, in {run}; all folds have the same settings: leave this change out, resume "
            f"{run} as it is, or start them under another name="
        )


def _check_room(run: RunFolder, *, one_fold: bool) -> None:
    """Checks that nothing in the folder of all folds is in the way of folds that start.

    Args:
        run: the folder of all folds.
        one_fold: whether one fold starts, beside others and their files. Otherwise all start, and the folder may hold
            only folds that never began.

    Raises:
        UserError: the folder holds something else.
    """
    folder = run.path
    if not folder.is_dir() or (one_fold and run.is_run):
        return
    with writing(folder):
        inside = sorted(folder.iterdir())
    folds = [path for path in inside if path.name.startswith("fold") and path.is_dir()]
    if one_fold:
        in_the_way = [path for path in inside if path not in folds and not path.name.startswith(".")]
    else:
        in_the_way = [path for path in inside if path not in folds or {entry.name for entry in path.iterdir()} - {LOCK}]
    if in_the_way:
        raise UserError(
            f"{folder}: holds files already ({in_the_way[0].name}); continue its folds with --resume, or "
            "use another name= or out="
        )
