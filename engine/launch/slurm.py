"""Hands runs to a cluster through submitit: to Slurm, or to processes of this machine to try it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.files import write_json_atomic
from engine.launch.child import TOOLS
from engine.launch.slurm_run import SlurmRun, demand_submitit
from models.settings import UserError, nearest

JOBS = "jobs.json"  # beside what submitit writes: the job of each run
WAITING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED"}
# Options of --slurm, and the parameters of submitit that they are.
OPTIONS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "comment": "slurm_comment",
    "exclude": "slurm_exclude",
    "mem": "slurm_mem",
    "gres": "slurm_gres",
    "time": "timeout_min",
    "cpus": "cpus_per_task",
    "gpus": "gpus_per_node",
    "processes": "tasks_per_node",
    "nodes": "nodes",
}
NUMBERS = ("cpus", "gpus", "processes", "nodes")
RESTARTS = 100  # how often a run may come to its time limit and go on


def split_words(words: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the options of --slurm from settings behind them, since argparse cannot know where the list ends.

    Args:
        words: what stands behind --slurm.
        keys: settings without a section, such as "name"; those of a section have a dot.
    """
    settings = [word for word in words if "." in word.partition("=")[0] or word.partition("=")[0] in keys]
    return [word for word in words if word not in settings], settings


def options_of(words: Sequence[str]) -> tuple[bool, dict[str, Any]]:
    """Reads the options of --slurm: whether one is `local`, and parameters of submitit.

    Raises:
        UserError: an unknown option, or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "local":
            continue
        if key not in OPTIONS or not (equals and value):
            raise UserError(
                f"--slurm {word}: unknown; write it as in partition=gpu; {nearest(key, [*OPTIONS, 'local'])}"
            )
        if key in NUMBERS and not re.fullmatch(r"[0-9]{1,4}", value):
            raise UserError(f"--slurm {word}: must be a whole number")
        if key in NUMBERS and key != "gpus" and not int(value):
            raise UserError(f"--slurm {word}: must be at least 1; leave it out for the default")
        found[OPTIONS[key]] = minutes(word, value) if key == "time" else int(value) if key in NUMBERS else value
    if "local" in words and found.get("nodes", 1) > 1:
        raise UserError(f"--slurm local nodes={found['nodes']}: local jobs have this machine alone; leave nodes out")
    return "local" in words, found


def checked(words: Sequence[str]) -> tuple[bool, dict[str, Any]]:
    """Returns what `options_of` returns, where runs can be submitted.

    Raises:
        UserError: submitit or Slurm is not there, or see `options_of`.
    """
    demand_submitit()
    local, parameters = options_of(words)
    if not (local or (shutil.which("sbatch") and shutil.which("srun"))):
        raise UserError("--slurm: no sbatch on this machine; start it on a login node, or try it with --slurm local")
    return local, parameters


def minutes(word: str, text: str) -> int:
    """Returns a time of Slurm in minutes, rounded up: "90", "4:00:00" or "1-12:00:00".

    Raises:
        UserError: it has another form.
    """
    if found := re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,4}):(\d\d):(\d\d)", text):
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        return (days * 24 + hours) * 60 + mins + (seconds > 0)
    if re.fullmatch(r"[1-9]\d{0,6}", text):
        return int(text)
    raise UserError(f"--slurm {word}: must be minutes, or H:MM:SS, or D-HH:MM:SS")


def submit(folder: Path, name: str, runs: Mapping[str, SlurmRun], words: Sequence[str], jobs: int = 1) -> list[str]:
    """Submits the runs that are not waiting in the cluster already, as one array with a job for each.

    Args:
        folder: for what submitit writes.
        name: of the jobs.
        runs: the runs that are not done, by title.
        words: the options of --slurm.
        jobs: how many run at a time; in a cluster 1 is no limit.

    Returns:
        Lines on what was submitted. With `local`, all have ended.

    Raises:
        UserError: submitit or Slurm is not there, or Slurm refuses the options.
    """
    local, parameters = checked(words)
    submitit = demand_submitit()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOOLS.parent), os.environ.get("PYTHONPATH")]))
    known = {} if local else _known(folder / JOBS)
    waiting = {title for title, job in known.items() if submitit.SlurmJob(folder, job).state in WAITING}
    left = {title: run for title, run in runs.items() if title not in waiting}
    lines = [f"{len(waiting)} in the cluster already"] if waiting else []
    if not left:
        return [*lines, "nothing to submit"]
    executor = _executor(submitit, folder, local, {"name": name, **parameters}, jobs)
    if local:
        return [*lines, *_run_here(executor, left, jobs)]
    try:
        submitted = executor.submit_array(list(left.values()))
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"--slurm: sbatch refused: {' '.join(str(error).split())}") from None
    known |= {title: job.job_id for title, job in zip(left, submitted, strict=True)}
    write_json_atomic(folder / JOBS, known)
    first = submitted[0].job_id.partition("_")[0]
    logs = next(iter(left.values())).log.parent
    return [*lines, f"submitted       {len(submitted)} as array {first}; logs in {logs} and {folder}"]


def _known(file: Path) -> dict[str, str]:
    """Returns the job of each run that was submitted before."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {title: job for title, job in found.items() if isinstance(job, str)} if isinstance(found, dict) else {}


def _executor(submitit: Any, folder: Path, local: bool, parameters: dict[str, Any], jobs: int) -> Any:
    parameters = {"timeout_min": 24 * 60, **parameters}
    options = {} if local else {"slurm_max_num_timeout": RESTARTS}
    executor = submitit.AutoExecutor(folder=folder, cluster="local" if local else "slurm", **options)
    if not local:
        parameters["slurm_setup"] = [f"export PYTHONPATH={os.environ['PYTHONPATH']}"]
        # NCCL would let the others wait for a process that is lost. Of those that are told to save, the first ends with
        # another code than 0, when its run has saved and the job is queued again, and the others with 0.
        parameters["slurm_srun_args"] = ["--kill-on-bad-exit=1"]
        parameters |= {"slurm_array_parallelism": jobs} if jobs > 1 else {}
    executor.update_parameters(**parameters)
    return executor


def _run_here(executor: Any, runs: Mapping[str, SlurmRun], jobs: int) -> list[str]:
    """Runs jobs with submitit's local executor, which starts each at once; returns a line for each that failed."""
    running: list[Any] = []
    for run in runs.values():
        while sum(not job.done() for job in running) >= jobs:
            time.sleep(0.2)
        running.append(executor.submit(run))
    lines = []
    for job, (title, run) in zip(running, runs.items(), strict=True):
        if (error := job.exception()) is not None:
            why = re.findall(r"^RuntimeError: (.*)", str(error), re.MULTILINE)
            why = why[-1] if why else f"{type(error).__name__}, see {job.paths.stderr}"
            lines.append(f"failed          {title}: {why}; log: {run.log}")
    return [*lines, f"{len(runs) - len(lines)} of {len(runs)} jobs came to their end"]
