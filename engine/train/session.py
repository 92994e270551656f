"""Trains one model, or one for each fold, as the settings say, and prints the report; `tools/train.py` calls it."""

from __future__ import annotations

from pathlib import Path

from engine.launch.group import ALONE, Group
from engine.runs.folder import RunFolder
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from engine.train.folds import run_folds
from engine.train.folds_report import summarise
from engine.train.report import print_folds, print_run
from models.interface import merge_settings
from models.settings import UserError


def train(
    settings: RunSettings,
    stored: RunFolder | None = None,
    *,
    resume: bool = False,
    command: str = "",
    group: Group = ALONE,
) -> None:
    """Trains by `settings`, writes the run folder, and prints what was measured.

    Args:
        settings: checked settings; with `split.folds` all folds are trained, or the one that `split.fold` names.
        stored: the run folder to continue, or one of its folds; None: the settings say where it is.
        resume: continue from the last checkpoint, if there is one.
        command: what the user typed, for TensorBoard; empty: not known.
        group: the processes that train together; those that torchrun starts again resume.

    Raises:
        UserError: settings, data, model and an earlier run that do not fit together, in one line.
    """
    with group.agreed():
        refuse_time(settings)
    run = stored or RunFolder(Path(settings.out) / settings.name)
    # Jobs of several machines may see the folder at different times, and so differ in whether they resume.
    resume = bool(group.largest(resume or group.restarted))
    if settings.split.folds:
        with group.agreed():
            folder = folder_of_folds(stored, settings) if stored else run
        train_folds(settings, folder, resume=resume, command=command, group=group)
        return
    with group.led(lambda: run.lock(resume=resume)):
        results = run_experiment(settings, run.path, resume=resume, command=command, group=group)
    if results is not None and group.leads:
        print_run(results, run.path)


def refuse_time(settings: RunSettings) -> None:
    """Raises UserError if the settings say how long a forward pass takes: another machine would train another model."""
    merge = merge_settings(settings.model)
    if merge is not None and merge.target_ms is not None:
        raise UserError(
            f"model.merge.target_ms = {merge.target_ms:g}: means another r on every machine; train with the r that "
            f"tools/flops.py prints for it, with the same --cfg and merge.target_ms={merge.target_ms:g}"
        )


def folder_of_folds(run: RunFolder, settings: RunSettings) -> RunFolder:
    """Returns the folder of all folds, where `run` is that folder or the run folder of a fold.

    Raises:
        UserError: `run` is another fold than the settings choose.
    """
    fold = run.settings.split.fold
    if fold is None:
        return run
    if settings.split.fold != fold:
        others = run.path.absolute().parent
        raise UserError(f"split.fold = {settings.split.fold}: {run} is fold {fold}; resume {others}")
    return run.folder_of_folds()


def train_folds(
    settings: RunSettings, run: RunFolder, *, resume: bool, command: str = "", group: Group = ALONE
) -> None:
    """Trains all folds, or the one that `split.fold` names, and prints the report on all folds once all are finished.

    Args:
        settings: with `split.folds`.
        run: the folder of all folds.
        resume: skip finished folds and continue stopped ones; with more epochs or steps than before, continue all.
        command: what the user typed, for TensorBoard; empty: not known.
        group: the processes that train together.
    """
    trained = run_folds(settings, run.path, resume=resume, command=command, group=group)
    if not group.leads:
        return
    run = RunFolder(run.path)  # the settings of the folds are read again: they may have more epochs than before
    if settings.split.fold is not None:
        print_run(trained[settings.split.fold], run.fold(settings.split.fold).path)
    if missing := run.unfinished_folds():
        names = ", ".join(map(str, missing))
        print(f"folds           {names} not finished; to finish them: tools/train.py --resume {run.path}")
    else:
        print_folds(summarise(settings, run.path), run.path)
