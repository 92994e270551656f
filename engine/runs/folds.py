"""Helpers for runs with folds: choose a fold in the settings, and check that folds belong together."""

from __future__ import annotations

from engine.runs.folder import RunFolder
from engine.settings.changes import changed_on_resume
from engine.settings.schema import RunSettings
from engine.wording import few
from models.settings import UserError


def of_all(settings: RunSettings) -> RunSettings:
    """Returns the settings for all folds, with `split.fold` removed."""
    return of_fold(settings, None)


def of_fold(settings: RunSettings, fold: int | None) -> RunSettings:
    """Returns the settings with `split.fold` set to `fold`."""
    return settings.model_copy(update={"split": settings.split.model_copy(update={"fold": fold})})


def check_same_settings(run: RunFolder) -> None:
    """Checks that all folds were run with the settings of the folder that holds them.

    Raises:
        UserError: a fold was run with other settings, or its settings are missing.
    """
    for number, fold in enumerate(run.folds):
        if not fold.is_run:
            name = fold.settings_file.name
            raise UserError(f"{fold}: has no {name}; delete it, then tools/train.py --resume {run}")
        if changed := changed_on_resume(fold.settings, of_fold(run.settings, number)):
            raise UserError(
                f"{changed}, in {fold}; give {run.settings_file} and {fold.settings_file} the same value, or delete "
                f"{fold} and run it again"
            )


def finished_runs(run: RunFolder) -> list[RunFolder]:
    """Returns the run folders of all folds, or the folder itself if it is a run of its own.

    Raises:
        UserError: this is not a run folder, the run or one of its folds is not finished, or the folds' settings differ.
    """
    if run.checkpoint("best").is_file():
        return [run]
    if not run.holds_folds:
        name = run.checkpoint("best").name
        raise UserError(f"{run}: has no {name}; finish the run with tools/train.py --resume {run}")
    if missing := run.unfinished_folds():
        names = few([run.fold(number).path.name for number in missing])
        raise UserError(
            f"{run}: {len(missing)} of {run.settings.split.folds} folds are not finished: {names}; continue with "
            f"tools/train.py --resume {run}, or give a finished fold by its own folder"
        )
    check_same_settings(run)
    return run.folds
