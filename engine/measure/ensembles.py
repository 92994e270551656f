"""Several runs on images that none of them has learnt: all folds, each on its own, and runs that predict together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.data import Split, build_data, load_raw
from engine.machine import pick_autocast
from engine.measure.evaluate import Evaluation, Mirrored, evaluate_logits, evaluate_split
from engine.measure.predictions import read_tested
from engine.runs.compatibility import same_images, warn_of_other_data
from engine.runs.folder import RunFolder
from engine.runs.folds import finished_runs
from engine.runs.restore import FinishedRun, load_run
from engine.settings.layers import parse_overrides
from engine.tasks import Task
from models.settings import UserError


def load_folds(folder: Path, overrides: Sequence[str] = (), which: str = "best") -> Iterator[tuple[Path, FinishedRun]]:
    """Reads the runs of all folds back, one at a time, each with the images that tested it; see `load_run`.

    The data are read once. A fold is tested on what it has not learnt: of overrides none may be of the split, and the
    images must be those that tested it, by their names and labels; other pixels are a warning.
    """
    runs = finished_runs(RunFolder(folder))
    if "split" in parse_overrides(overrides):
        raise UserError(
            f"split: each fold is tested on its own images; for another split give one, such as --run {runs[0]}"
        )
    raw = load_raw(runs[0].settings_with(overrides).data)
    for run in runs:
        settings = run.settings_with(overrides)
        data = build_data(settings.data, settings.split, settings.seed, raw)
        if data.task.one_class:  # else there is no predictions.csv
            read_tested(run.path, data.test, data.classes)
        warn_of_other_data(run, settings, data)
        yield run.path, load_run(run, overrides, which, data)


def evaluate_together(
    folders: Sequence[Path], runs: Sequence[FinishedRun], split: str = "test", mirror: bool = False
) -> Evaluation:
    """The mean probabilities of all runs on the images of a split.

    Args:
        folders: the runs' names, for errors.
        runs: runs that know the same classes, in any order, and whose `split` is of the same images, at any size.
        split: "test" or "val".
        mirror: average over each image and its mirror image, too.

    Raises:
        UserError: other classes or images than the first run's.
    """
    classes, first = runs[0].data.classes, getattr(runs[0].data, split)
    said = []
    for folder, run in zip(folders, runs, strict=True):
        if set(run.data.classes) != set(classes):
            raise UserError(f"--run {folder}: its classes are not those of {folders[0]}; give runs on the same classes")
        order = torch.tensor([run.data.classes.index(name) for name in classes])
        own = getattr(run.data, split)
        if not len(own):
            raise UserError(f"--run {folder}: it has no {split} images (split.{split} = 0); leave it out")
        same_task = run.data.task is runs[0].data.task
        if not (same_task and _same(first, own, order, run.data.task, same_images(runs[0].settings, run.settings))):
            keys = "split.test_seed and folds" + (", split.val and seed" if split == "val" else "")
            raise UserError(
                f"--run {folder}: its {split} images are not those of {folders[0]}, which may have learnt "
                f"them; give runs with the same data, {keys}"
            )
        said.append(evaluate_run(run, split, keep_logits=True, mirror=mirror).logits[:, order])
    task = runs[0].data.task
    return evaluate_logits(task.mean_logits(said), first.labels, task)


def _same(one: Split, other: Split, order: torch.Tensor, task: Task, one_source: bool) -> bool:
    """Whether two splits are of the same images with the same labels; class i of the first is order[i] of the other.

    Images of one source are known by their files, at whatever size they are read; others by their pixels.
    """
    if len(one) != len(other) or not torch.equal(one.labels, task.renumbered(other.labels, order)):
        return False
    if one_source and one.paths is not None and other.paths is not None:
        return one.paths == other.paths
    return list(one.digests()) == list(other.digests())


def evaluate_run(
    run: FinishedRun, split: str, first: int | None = None, keep_logits: bool = False, mirror: bool = False
) -> Evaluation:
    """A finished run's model on its `test` or `val` images, or on the first few batches of them.

    Args:
        run: a run read back.
        split: "test" or "val".
        first: batches; None: all.
        keep_logits: return what the model said of every image.
        mirror: average its probabilities over each image and its mirror image.

    Raises:
        UserError: the run has no such images.
    """
    settings = run.settings
    if not len(getattr(run.data, split)):
        held_out = f"split.{split} = {getattr(settings.split, split)}"
        raise UserError(f"--split {split}: the run has no such images ({held_out}); use another")
    autocast = pick_autocast(settings.train.precision, next(run.model.parameters()).device)
    model = Mirrored(run.model, run.data.task) if mirror else run.model
    size = settings.train.batch_size
    return evaluate_split(model, run.data, split, size, autocast, first=first, keep_logits=keep_logits)
