"""The folder of all folds of a run: which of them are there, and whether they belong together."""

from __future__ import annotations

from pathlib import Path

from engine.runs.restore import read_settings
from engine.settings.changes import changed_on_resume
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.wording import few
from models.settings import UserError


def fold_folders(folder: Path, settings: RunSettings) -> list[Path]:
    """The run folders of all folds, there or not, in a folder of `split.folds`."""
    assert settings.split.folds
    return [folder / f"fold{fold}" for fold in range(settings.split.folds)]


def unfinished(settings: RunSettings, folder: Path) -> list[int]:
    """The folds that have not come to their end."""
    return [i for i, path in enumerate(fold_folders(folder, settings)) if not (path / "results.json").is_file()]


def of_all(settings: RunSettings) -> RunSettings:
    """The settings without the choice of one fold."""
    return of_fold(settings, None)


def of_fold(settings: RunSettings, fold: int | None) -> RunSettings:
    """The settings with a fold chosen, or none."""
    return settings.model_copy(update={"split": settings.split.model_copy(update={"fold": fold})})


def demand_alike(settings: RunSettings, folder: Path) -> None:
    """Refuses a fold that was run with other settings than all of them, or that has lost its own."""
    for fold, path in enumerate(fold_folders(folder, settings)):
        if not (path / "settings.yaml").is_file():
            raise UserError(f"{path}: has no settings.yaml; delete it, then tools/train.py --resume {folder}")
        if changed := changed_on_resume(load_settings(str(path / "settings.yaml")), of_fold(settings, fold)):
            raise UserError(f"{changed}, in {path}; delete it and run it again")


def holds_folds(folder: Path) -> bool:
    """Whether it is the folder of all folds, and no run's own.

    Raises:
        UserError: it is neither.
    """
    return read_settings(folder)[0].split.all_folds


def finished_folders(folder: Path) -> list[Path]:
    """The run folders of all folds, or the folder itself where it is a run's own.

    Raises:
        UserError: no run there, or one that did not come to its end, or folds that did not, or of other settings.
    """
    if (folder / "best.pt").is_file():
        return [folder]
    if not holds_folds(folder):
        raise UserError(f"{folder}: has no best.pt; let the run come to its end, tools/train.py --resume {folder}")
    settings = load_settings(str(folder / "settings.yaml"))
    if missing := unfinished(settings, folder):
        names = few([f"fold{fold}" for fold in missing])
        raise UserError(
            f"{folder}: {len(missing)} of {settings.split.folds} folds are not done: {names}; go on with "
            f"tools/train.py --resume {folder}, or give a finished fold by its own folder"
        )
    demand_alike(settings, folder)
    return fold_folders(folder, settings)
