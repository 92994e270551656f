"""k-fold cross-validation: a run for each fold, in a folder of its own.

`split.folds: 5` makes runs/NAME/fold0 to fold4, which are ordinary run folders. Each of them is locked, but runs/NAME
is not: several processes can run one fold each (`split.fold`), and the one that finishes last writes the report on all
of them, see `engine.train.folds_report`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from engine.files import writing
from engine.launch.group import ALONE, Group
from engine.runs.folder import RunFolder
from engine.runs.folds import of_all, of_fold
from engine.runs.lock import LOCK
from engine.runs.records.results import Results
from engine.settings.changes import changed_on_resume
from engine.settings.schema import RunSettings
from engine.train.experiment import check_unchanged, run_experiment
from models.settings import UserError


def run_folds(
    settings: RunSettings, folder: Path, *, resume: bool = False, command: str = "", group: Group = ALONE
) -> dict[int, Results]:
    """Runs all folds one after the other, or the one that `split.fold` names, each as `run_experiment` does.

    A signal that stops one fold stops all.

    Args:
        settings: with split.folds.
        folder: the folder of all folds.
        resume: whether to skip finished folds and continue stopped ones; the others are started. With more epochs or
            steps than before, finished folds continue as well.
        command: what the user typed, for TensorBoard; empty: not known.
        group: the processes that train each fold together.

    Returns:
        The results of each fold that was to be run; none in other processes of a group than the first.

    Raises:
        UserError: the settings are not those of the folds that exist already; the folder holds files although `resume`
            is off, or does not exist although it is on; or see `run_experiment`.
    """
    run = RunFolder(folder)
    numbers = range(settings.split.folds) if settings.split.fold is None else [settings.split.fold]
    with group.agreed():
        _check_folder(settings, run, numbers, resume=resume)

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
        resume_fold = bool(group.largest(resume and fold.path.is_dir()))
        with group.led(partial(fold.lock, resume=resume_fold)):
            options = {"resume": resume_fold, "begin": begin, "command": command, "group": group}
            try:
                result = run_experiment(of_fold(settings, number), fold.path, **options)
            except SystemExit:  # a signal; how to resume this fold is printed already
                if settings.split.fold is None and group.leads:
                    print(f"to resume all folds: tools/train.py --resume {folder}", flush=True)
                raise
        if result is not None:
            results[number] = result
    return results


def _check_folder(settings: RunSettings, run: RunFolder, numbers: Iterable[int], *, resume: bool) -> None:
    """Checks that the folder of all folds is one in which these folds can be started or continued.

    Raises:
        UserError: see `run_folds`.
    """
    _check_same_settings(of_all(settings), run, may_go_on=resume)
    if not resume:
        _check_room(run, one_fold=settings.split.fold is not None)
    elif not run.path.is_dir():
        raise UserError(f"{run.path}: no run to resume here; start one without --resume, or check name= and out=")
    else:
        for number in numbers:  # of all folds before the first one is trained, which can take hours
            check_unchanged(of_fold(settings, number), run.fold(number))


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
