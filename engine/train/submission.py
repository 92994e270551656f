"""Hands a run, or each of its folds, to a cluster as a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.files import write_text_atomic, writing
from engine.launch import slurm
from engine.launch.child import tool
from engine.launch.slurm_run import SlurmRun
from engine.runs.folder import RunFolder
from engine.runs.folds import of_fold
from engine.settings.layers import to_yaml
from engine.settings.schema import RunSettings
from engine.train.experiment import check_unchanged
from engine.train.session import folder_of_folds, refuse_time
from models.settings import UserError


def submit(
    settings: RunSettings, words: Sequence[str], stored: RunFolder | None = None, *, resume: bool = False
) -> list[str]:
    """Submits a run as a job, or each of its folds that is not finished; see `engine.launch.slurm.submit`.

    What the jobs need lies in OUT/NAME.slurm: the settings as they are now, logs, and what submitit writes.

    Args:
        settings: of the run; with `split.folds` all folds are submitted, or the one that `split.fold` names.
        words: the options of --slurm.
        stored: the run folder to continue, or one of its folds, which may have been moved; None: the settings say it.
        resume: whether its folder may be there already.

    Returns:
        Lines on what was submitted. With `local`, all have ended.

    Raises:
        UserError: the folder is there and `resume` is off, a local job failed, or see `engine.launch.slurm.submit`.
    """
    refuse_time(settings)
    if stored is not None:
        top = folder_of_folds(stored, settings).path if settings.split.folds else stored.path
        settings = settings.model_copy(update={"name": top.resolve().name, "out": str(top.resolve().parent)})
    local, _ = slurm.checked(words)  # before anything is written
    run, folder = RunFolder(Path(settings.out) / settings.name), Path(settings.out) / f"{settings.name}.slurm"
    folds = list(range(settings.split.folds or 0)) if settings.split.all_folds else [settings.split.fold]
    left: dict[str, SlurmRun] = {}
    for fold in folds:
        title = settings.name if fold is None else f"{settings.name}_fold{fold}"
        one, of_one = (run, settings) if fold is None else (run.fold(fold), of_fold(settings, fold))
        if one.path.is_dir() and not resume:
            raise UserError(f"{one}: is there already; continue it with --resume, or use another name= or out=")
        if check_unchanged(of_one, one) or not one.is_finished:
            command = tool("train", "--cfg", str(folder / "settings.yaml"))
            command += [] if fold is None else [f"split.fold={fold}"]
            left[title] = SlurmRun(command, one.path, folder / f"{title}.txt", settings.threads)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / "settings.yaml", to_yaml(settings))
    lines = slurm.submit(folder / "jobs", settings.name, left, words, jobs=1)
    if local and (failed := [line for line in lines if line.startswith("failed")]):
        raise UserError(f"--slurm local: {' '.join(failed[0].split()[1:])}")
    return [*lines, f"continue        tools/train.py --resume {run} --slurm {' '.join(words)}".rstrip()]
