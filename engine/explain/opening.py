"""The models that explanations are made with, and their images: runs, each with one way of merging or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engine.explain.explaining import class_number, mistaken, read
from engine.runs.folder import RunFolder
from engine.runs.restore import FinishedRun, TrainedModel, load_model, load_run
from engine.submit.images import images_of
from models.interface import SettingsWithMerging
from models.settings import UserError

UNMERGED, TRAINED = "unmerged", "trained"


@dataclass(frozen=True)
class Wanted:
    """What tools/explain.py was asked for.

    Attributes:
        runs: run folders.
        images: image files and folders of images; none: the test images that the first run gets wrong.
        methods: keys of EXPLAINERS, "merge", or "all".
        target: a class's name or number; None: the class that each run predicts.
        overrides: of the runs, and options of methods.
        smooth: draw maps interpolated.
        wrong: without images: how many mistakes, the most confident first.
        budgets: how much each run merges, see `budget`; none: as it was trained, or as the overrides say.
        tensorboard: write the pictures for TensorBoard, too.
    """

    runs: Sequence[Path]
    images: Sequence[Path]
    methods: Sequence[str]
    target: str | None = None
    overrides: Sequence[str] = ()
    smooth: bool = False
    wrong: int = 0
    budgets: Sequence[str] = ()
    tensorboard: bool = False


@dataclass(frozen=True)
class Opened:
    """One run with one way of merging, and the images as it reads them.

    Attributes:
        label: what tells it from the others; empty where there is one.
        run: the model.
        images: uint8 (N, C, size, size).
        target: the class that is explained; None: for each image the predicted one.
    """

    label: str
    run: TrainedModel
    images: Tensor = field(repr=False)
    target: int | None


def opened(wanted: Wanted, overrides: Sequence[str]) -> tuple[list[str], list[Opened]]:
    """Loads every run with every budget, and reads the images.

    Returns:
        The images' names, and the models: all budgets of the first run, then those of the second.

    Raises:
        UserError: a budget or a class that is none, a folder that is no run, or an image that cannot be read.
    """
    budgets = [*dict(map(budget, wanted.budgets)).items()] or [("", [])]  # 0.8 and 0.80 are one
    if wanted.budgets:
        _check_that_they_merge(wanted.runs)
    changes = [[*overrides, *changed] for _, changed in budgets]
    if wanted.wrong:
        finished = [run for folder in wanted.runs for run in _finished(folder, changes)]
        names, pixels = mistaken(finished, wanted.wrong)
        runs: Sequence[TrainedModel] = finished
    else:
        files = images_of(wanted.images)
        runs = [load_model(folder, change) for folder in wanted.runs for change in changes]
        names, pixels = list(files), [read(run, files) for run in runs]
    for run in runs:
        run.model.eval()
    targets = [None if wanted.target is None else class_number(run.classes, wanted.target) for run in runs]
    of_runs = _names(wanted.runs, runs[:: len(budgets)])
    labels = [": ".join(filter(None, [name, words])) for name in of_runs for words, _ in budgets]
    return names, [Opened(*each) for each in zip(labels, runs, pixels, targets, strict=True)]


def budget(text: str) -> tuple[str, list[str]]:
    """What is written for a way of merging: how it is called in figures, and the overrides that it stands for.

    Args:
        text: "unmerged", "trained" (whatever the run and its overrides say), or GMACs of one image, such as "0.8".

    Raises:
        UserError: it is none of these.
    """
    if text == UNMERGED:
        return text, ["merge.r=0"]
    if text == TRAINED:
        return text, []
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"--budgets {text}: give {UNMERGED}, {TRAINED}, or GMACs of one image, as in 0.8")
    return f"{value!r} GMACs", [f"merge.target_gmacs={value!r}"]


def _check_that_they_merge(folders: Sequence[Path]) -> None:
    """Refuses budgets of models without a `merge:` section."""
    for folder in folders:
        model = RunFolder.at(folder).settings.model
        if not isinstance(model, SettingsWithMerging):
            raise UserError(f"--budgets: {folder} is a {model.name}, which cannot merge tokens; leave --budgets out")


def _finished(folder: Path, changes: Sequence[Sequence[str]]) -> list[FinishedRun]:
    """A run with each of its changes; its data are loaded once."""
    first, *others = changes
    run = load_run(folder, first)
    return [run, *(load_run(folder, change, data=run.data) for change in others)]


def _names(folders: Sequence[Path], runs: Sequence[TrainedModel]) -> list[str]:
    """What tells runs apart: nothing for one run; their names, or their folders where two names are the same."""
    names = [run.settings.name for run in runs]
    if len(runs) == 1:
        return [""]
    return names if len(set(names)) == len(names) else [folder.as_posix() for folder in folders]
