"""Several runs that say together what an image is, on images that none of them has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engine.data import Split
from engine.evaluate import Evaluation, mean_logits, measured
from engine.finished import FinishedRun, evaluate_run
from models.settings import UserError


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
        if not _same(first, own, order):
            raise UserError(f"--run {folder}: its {split} images are not those of {folders[0]}, which may have learnt "
                            "them; give runs with the same data, split.test_seed and folds")  # fmt: skip
        said.append(evaluate_run(run, split, keep_logits=True, mirror=mirror).logits[:, order])
    return measured(mean_logits(said, runs[0].data.multi_label), first.labels)


def _same(one: Split, other: Split, order: torch.Tensor) -> bool:
    """Whether two splits are of the same images with the same labels; class i of the first is order[i] of the other.

    Images are known by their files, or, where they have none, by their pixels.
    """
    if one.multi_label != other.multi_label or len(one) != len(other):
        return False
    labels = other.labels[:, order] if one.multi_label else torch.argsort(order)[other.labels]
    if not torch.equal(one.labels, labels):
        return False
    if one.paths is not None and other.paths is not None:
        return [Path(path).name for path in one.paths] == [Path(path).name for path in other.paths]
    return list(one.digests()) == list(other.digests())
