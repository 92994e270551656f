"""Evaluates finished runs: one by itself, the runs of all folds, and several runs by their mean probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.data import Split, build_data, load_raw
from engine.data.names import places
from engine.machine import pick_autocast
from engine.measure.evaluate import Evaluation, Mirrored, evaluate_logits, evaluate_split
from engine.measure.predictions import read_tested
from engine.runs.compatibility import same_images, warn_of_other_data
from engine.runs.folder import RunFolder, Which
from engine.runs.folds import finished_runs
from engine.runs.restore import FinishedRun, load_run
from engine.settings.layers import parse_overrides
from engine.tasks import Task
from models.settings import UserError


def load_folds(
    folder: RunFolder | Path, overrides: Sequence[str] = (), which: Which = "best"
) -> Iterator[tuple[Path, FinishedRun]]:
    """Loads the runs of all folds one at a time, each with the images that it was tested on; the data are read once.

    Every fold must be evaluated on images that it was not trained on. Therefore overrides of the split are an error,
    and so are test images whose names or labels have changed since training. Changed pixels cause a warning.

    Args:
        folder: the folder of all folds.
        overrides: changes to the runs' settings, such as "merge.r=4".
        which: which checkpoint of each run to load, "best" or "last".

    Yields:
        The folder of each fold's run, and the run.

    Raises:
        UserError: a fold is not finished, the split is overridden, or the images differ from those in training.
    """
    runs = finished_runs(RunFolder.at(folder))
    if "split" in parse_overrides(overrides):
        raise UserError(
            f"split: each fold is tested on its own images; for another split give one, such as --run {runs[0]}"
        )
    raw = load_raw(runs[0].settings_with(overrides).data)
    for run in runs:
        settings = run.settings_with(overrides)
        data = build_data(settings.data, settings.split, settings.seed, raw)
        if data.task.one_class:  # else there is no predictions.csv
            read_tested(run.predictions_file, data.test, data.classes)
        warn_of_other_data(run, settings, run.read_results(), data)
        yield run.path, load_run(run, overrides, which, data)


def evaluate_together(
    folders: Sequence[Path], runs: Sequence[FinishedRun], split: str = "test", *, mirror: bool = False
) -> Evaluation:
    """Evaluates the mean probabilities of several runs on the images of a split.

    Args:
        folders: the runs' folders, for error messages.
        runs: runs with the same classes, in any order, and the same images in `split`, at any size.
        split: "test" or "val".
        mirror: whether to average over each image and its mirror image as well.

    Raises:
        UserError: a run has no images, or its classes or images differ from those of the first run.
    """
    classes, first = runs[0].data.classes, getattr(runs[0].data, split)
    logits = []
    for folder, run in zip(folders, runs, strict=True):
        own = places(classes, run.data.classes)
        if own is None:
            raise UserError(f"--run {folder}: its classes are not those of {folders[0]}; give runs on the same classes")
        order = torch.tensor(own)
        images = getattr(run.data, split)
        if not len(images):
            raise UserError(f"--run {folder}: it has no {split} images ({run.data.absent[split]}); leave it out")
        same_task = run.data.task is runs[0].data.task
        if not (
            same_task
            and _same(first, images, order, run.data.task, one_source=same_images(runs[0].settings, run.settings))
        ):
            keys = "split.test_seed and folds" + (", split.val and seed" if split == "val" else "")
            raise UserError(
                f"--run {folder}: its {split} images are not those of {folders[0]}, which may have been trained on "
                f"them; give runs with the same data, {keys}"
            )
        own_logits = evaluate_run(run, split, keep_logits=True, mirror=mirror).logits
        assert own_logits is not None
        logits.append(own_logits[:, order])
    task = runs[0].data.task
    return evaluate_logits(task.mean_logits(logits), first.labels, task)


def _same(one: Split, other: Split, order: torch.Tensor, task: Task, *, one_source: bool) -> bool:
    """Returns whether two splits hold the same images with the same labels; class i of `one` is order[i] of `other`.

    Images from the same source are compared by file name, whatever size they are read at, others by their pixels.
    """
    if len(one) != len(other) or not torch.equal(one.labels, task.renumbered(other.labels, order)):
        return False
    if one_source and one.paths is not None and other.paths is not None:
        return one.paths == other.paths
    return list(one.digests()) == list(other.digests())


def evaluate_run(
    run: FinishedRun,
    split: str,
    *,
    first: int | None = None,
    keep_logits: bool = False,
    keep_mistakes: int = 0,
    mirror: bool = False,
) -> Evaluation:
    """Evaluates the model of a finished run on its test or validation images.

    Args:
        run: the restored run.
        split: "test" or "val".
        first: number of batches to evaluate; None: all.
        keep_logits: whether to return the logits of every image.
        keep_mistakes: the number of most confident mistakes to return; only for tasks with one class per image.
        mirror: whether to average the probabilities over each image and its mirror image.

    Raises:
        UserError: the run has no such images.
    """
    settings = run.settings
    if not len(getattr(run.data, split)):
        raise UserError(f"--split {split}: the run has no such images ({run.data.absent[split]}); use another")
    autocast = pick_autocast(settings.train.precision, next(run.model.parameters()).device)
    model = Mirrored(run.model, run.data.task) if mirror else run.model
    size = settings.train.batch_size
    kept = {"keep_logits": keep_logits, "keep_mistakes": keep_mistakes}
    return evaluate_split(model, run.data, split, size, autocast, first=first, **kept)
