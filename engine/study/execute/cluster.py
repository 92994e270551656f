"""Hands the runs of a study to a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.launch import slurm
from engine.launch.slurm_run import SlurmRun
from engine.study.execute.study import LOGS, training_command
from engine.study.plan.folders import Placed

FOLDER = "slurm"  # in a study folder: what submitit writes


def submit(study: Path, name: str, runs: Sequence[Placed], words: Sequence[str], jobs: int) -> list[str]:
    """Submits the runs that are not done; see `engine.launch.slurm.submit`.

    Args:
        study: the study folder.
        name: of the study.
        runs: the runs.
        words: the options of --slurm.
        jobs: how many run at a time; in a cluster 1 is no limit.
    """
    left = {placed.run.title: job_of(study, placed) for placed in runs if placed.state != "done"}
    return slurm.submit(study / FOLDER, name, left, words, jobs)


def job_of(study: Path, placed: Placed) -> SlurmRun:
    """Returns the job of a run, after writing its settings."""
    log = study / LOGS / f"{placed.run.title}.txt"
    return SlurmRun(training_command(study, placed), placed.folder.path, log, placed.run.settings.threads)
