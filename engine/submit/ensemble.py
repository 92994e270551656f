"""Ensembles of runs that predict together: finds their run folders and weights, and checks that their classes agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.names import nfc, places
from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.folds import finished_runs
from engine.settings.layers import parse_overrides
from engine.tasks import Task
from engine.wording import counted, few
from models.settings import UserError


@dataclass(frozen=True)
class Member:
    """A run folder of an ensemble, and its share of the averaged probabilities."""

    run: RunFolder
    share: float


@dataclass(frozen=True)
class Ensemble:
    """Runs with the same classes, whose probabilities are averaged.

    Attributes:
        members: their shares sum to 1.
        classes: names, in the order of the first run's logits.
        task: what the labels mean.
        overrides: changes to every run's settings.
    """

    members: list[Member]
    classes: list[str]
    task: Task
    overrides: tuple[str, ...] = ()


def classes_of(folder: Path) -> tuple[list[str], Task]:
    """Returns the names of a run's classes in the order of its logits, and what its labels mean.

    Args:
        folder: a run folder, or a folder of all folds.
    """
    ensemble = gather([folder])
    return ensemble.classes, ensemble.task


def gather(folders: Sequence[Path], weights: Sequence[float] | None = None, overrides: Sequence[str] = ()) -> Ensemble:
    """Finds the runs that predict together, and checks that they can.

    Args:
        folders: run folders, or folders of all folds (fold0, fold1, ...); every fold becomes a member.
        weights: one for each folder, divided among its folds; None: equal weights.
        overrides: changes to every run's settings.

    Raises:
        UserError: a folder is not a run or has unfinished folds; a run is given twice; weights are not positive
            numbers; an override is invalid, concerns the split, or turns on merging in a model that cannot merge; or
            the runs' classes differ.
    """
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if len(weights) != len(folders):
        raise UserError(
            f"--weights: {counted(len(weights), 'number')} for {counted(len(folders), 'run')}; give one for each --run"
        )
    if not all(weight > 0 for weight in weights) or not sum(weights) < float("inf"):  # also refuses nan
        text = ",".join(f"{weight:g}" for weight in weights)
        raise UserError(f"--weights {text}: must be numbers greater than 0, with a finite sum")
    members = []
    for folder, weight in zip(folders, weights):
        folds = finished_runs(RunFolder(folder))
        members += [Member(fold, weight / sum(weights) / len(folds)) for fold in folds]
    count = Counter(member.run.path.resolve() for member in members)
    if twice := [member.run for member in members if count[member.run.path.resolve()] > 1]:
        raise UserError(f"--run {twice[-1]}: given twice; give it once, and set how much it counts with --weights")
    if "split" in parse_overrides(overrides):
        raise UserError(
            f"split: has no effect on predictions, which use no data of the run; for one fold alone give its "
            f"folder, such as --run {members[0].run}"
        )
    labels = [_labels(member.run, overrides) for member in members]
    for member, other in zip(members[1:], labels[1:]):
        _check_same(members[0].run, labels[0], member.run, other)
    return Ensemble(members, *labels[0], tuple(overrides))


def _labels(run: RunFolder, overrides: Sequence[str]) -> tuple[list[str], Task]:
    """Returns a run's classes and what its labels mean; checks its settings with the overrides."""
    settings = run.solved_settings_with(overrides)
    return checkpoint.load(run.checkpoint("best"))["classes"], settings.data.task


def _check_same(
    run: RunFolder, labels: tuple[list[str], Task], other: RunFolder, other_labels: tuple[list[str], Task]
) -> None:
    (classes, task), (other_classes, other_task) = labels, other_labels
    if places(classes, other_classes) is None:
        only = {
            run: sorted(map(repr, set(map(nfc, classes)) - set(map(nfc, other_classes)))),
            other: sorted(map(repr, set(map(nfc, other_classes)) - set(map(nfc, classes)))),
        }
        differences = [f"{len(names)} only {run} has ({few(names)})" for run, names in only.items() if names]
        raise UserError(
            f"--run {other}: its classes are not those of {run}: {', '.join(differences)}; "
            "give runs on the same classes"
        )
    if task is not other_task:
        raise UserError(
            f"--run {other}: its labels are not of the kind that {run} has, such as many labels for an image; "
            "give runs of one kind"
        )
