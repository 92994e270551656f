"""The report on all folds, once they are finished: `folds.json`, two pictures, and events for TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.data import Data, RawData, Split, load_raw
from engine.data.balance import are_unequal
from engine.data.names import same_names
from engine.data.split import folded, split_data, with_test_set
from engine.figures.confusion import confused_figure, confusion_figure
from engine.figures.drawing import draw
from engine.measure.confusion import class_accuracy, confusion_matrix, most_confused
from engine.measure.intervals import spread
from engine.measure.predictions import Predictions, read_tested
from engine.runs.folder import RunFolder
from engine.runs.folds import check_same_settings, of_all, of_fold
from engine.runs.log import start_log
from engine.runs.records.class_scores import classes_to_json, pooled_scores
from engine.runs.records.folds_report import ConfusedPair, FoldResult, FoldsReport
from engine.runs.records.record import NewerVersion, RunRecord
from engine.runs.records.results import Results
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.tasks import task_with_metric
from engine.train.cards import folds_card
from models.settings import UserError

log = logging.getLogger("hybridmerge")


def summarise(settings: RunSettings, folder: Path) -> FoldsReport:
    """Writes the report on all folds, unless it exists: `folds.json`, `confusion.png`, `confused.png`, and events for
    TensorBoard with both pictures. There are pictures only where each image has one class.

    Returns:
        What `folds.json` holds.

    Raises:
        UserError: a fold is not finished or was run with other settings, the data have changed, or a newer version
            wrote the report.
    """
    run = RunFolder(folder)
    if missing := run.unfinished_folds():
        names = ", ".join(map(str, missing))
        raise UserError(f"{folder}: not finished: fold {names}; continue with --resume {folder}")
    whole = of_all(settings)
    check_same_settings(run)
    runs = [fold.read_results() for fold in run.folds]
    report = together(whole, runs)
    start_log()  # the log of the last fold has ended with it
    if (written := read_report(run, report)) is not None:
        return written
    run.check_files()
    raw = load_raw(whole.data)
    for number, fold in enumerate(run.folds):
        # The machine of the fold may have read other data.
        if fingerprint(raw, of_fold(whole, number)) != runs[number].data_sha256:
            log.warning("%s: was run on other labels or pixels than are read here and now", fold)
    with Tracker(folder) as tracker:
        tracker.text(0, "folds", folds_card(report))
        if whole.data.task.one_class:
            report = report.model_copy(update=_confusions(report, raw, run, tracker))
    made = {"settings": whole.model_dump(mode="json"), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    report = report.model_copy(update=made)
    run.write_folds_report(report)
    return report


def read_report(run: RunFolder, expected: FoldsReport) -> FoldsReport | None:
    """Returns the report that a folder of all folds holds; None if there is none, or one to be written again.

    Args:
        run: the folder of all folds.
        expected: the part of the report that follows from the folds' results.

    Raises:
        NewerVersion: a newer version wrote the report.
    """
    try:
        report = run.read_folds_report()
    except NewerVersion:
        raise
    except UserError:
        log.warning("%s: damaged; it is written again", run.folds_file)
        return None
    if report is None or report.agrees_with(expected):
        return report
    log.warning("%s: not the report on the results of these folds; it is written again", run.folds_file)
    return None


def fingerprint(raw: RawData, settings: RunSettings) -> str:
    """Returns the fingerprint of one fold's data, which its results have as `data_sha256`."""
    raw = with_test_set(raw, settings.split)
    train, val = split_data(raw, settings.split, settings.seed)
    return Data(train, val, raw.test, raw.classes, (), (), task=raw.task).fingerprint()


def together(settings: RunSettings, runs: Sequence[Results]) -> FoldsReport:
    """Returns the part of the report that needs results only: mean, spread, intervals, and the scores of classes.

    A metric that does not count images, such as mean average precision, has a mean and a spread, and no interval on new
    images.
    """
    task, first = task_with_metric(runs[0].metric), runs[0]
    scores = [run.class_scores for run in runs if run.class_scores is not None]  # an older version has none
    classes = pooled_scores(scores) if len(scores) == len(runs) else None
    trained = [[*run.train_class_images.values()] for run in runs if run.train_class_images]
    accuracies, sizes = [run.test_score for run in runs], [run.test_images for run in runs]
    return FoldsReport(
        **{name: getattr(first, name) for name in RunRecord.model_fields},
        folds=len(runs),
        test_seed=settings.split.test_seed,
        spread=spread(accuracies, sizes, counted=task.counts_images),
        **classes_to_json(classes, task, list(first.class_images or [])),
        unequal=are_unequal(*trained, [] if classes is None else classes.images),
        seconds=sum(run.seconds for run in runs),
        fold=[FoldResult.of(number, run) for number, run in enumerate(runs)],
    )


def pooled(raw: RawData, run: RunFolder) -> tuple[Split, Predictions]:
    """Returns all images of the folds, and for each the prediction of the model that was not trained on it.

    Raises:
        UserError: the `predictions.csv` of a fold cannot be read, or is of other images than the data.
    """
    images, parts = folded(raw, run.settings.split)
    labels = images.labels.numpy()
    predicted, probabilities = np.zeros_like(labels), np.zeros(len(labels), np.float32)
    for number, fold in enumerate(run.folds):
        positions = np.flatnonzero(parts == number)
        tested = images.take(torch.from_numpy(positions))
        predictions = read_tested(fold.predictions_file, tested, raw.classes)
        predicted[positions], probabilities[positions] = predictions.predicted, predictions.probabilities
    return images, Predictions(labels, predicted, probabilities)


def _confusions(report: FoldsReport, raw: RawData, run: RunFolder, tracker: Tracker) -> dict[str, Any]:
    """Draws which classes are confused; returns the fields of the report about that: the accuracy of each class, the
    confusion matrix without its zeros, and the most confused pairs."""
    images, predictions = pooled(raw, run)
    # The folds may have read their names in other bytes, from an archive unpacked on another system.
    tested = list(report.class_images or [])
    classes = tested if same_names(tested, raw.classes) else raw.classes
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    pairs = most_confused(matrix)
    accuracy = f"{100 * report.spread.pooled.accuracy:.2f} % of {len(images)} images"
    title = f"{report.name}: {accuracy}, each predicted in one of {report.folds} folds"
    draw(run.path, tracker, 0, "folds/confusion", confusion_figure(matrix, classes, title))
    figure = confused_figure(pairs, predictions, images, classes, f"{report.name}: confused most")
    draw(run.path, tracker, 0, "folds/confused", figure)
    return {
        "class_accuracy": report.class_accuracy or class_accuracy(matrix, classes),
        "confused": [
            ConfusedPair(
                classes=(classes[pair.first], classes[pair.second]),
                first_as_second=pair.as_second,
                second_as_first=pair.as_first,
            )
            for pair in pairs
        ],
        "confusion": {
            name: {classes[i]: int(row[i]) for i in np.flatnonzero(row)}
            for name, row in zip(classes, matrix, strict=True)
        },
    }
