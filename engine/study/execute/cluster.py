"""Hands the runs of a study to a cluster through submitit: to Slurm, or to processes of this machine to try it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.files import write_json_atomic
from engine.study.execute.child import TOOLS
from engine.study.execute.cluster_run import ClusterRun, demand_submitit
from engine.study.execute.study import LOGS, training_command
from engine.study.plan.folders import Placed
from models.settings import UserError, nearest

FOLDER, JOBS = "slurm", "jobs.json"  # in a study folder: what submitit writes, and the job of each run
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
}
NUMBERS = ("cpus", "gpus")
RESTARTS = 100  # how often a run may come to its time limit and go on


def options_of(words: Sequence[str]) -> tuple[bool, dict[str, Any]]:
    """Reads what stands behind --slurm: whether it is `local`, and parameters of submitit.

    Raises:
        UserError: an unknown option, or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word == "local":
            continue
        if key not in OPTIONS or not (equals and value):
            raise UserError(f"--slurm {word}: unknown; {nearest(key, [*OPTIONS, 'local'])}, as in partition=gpu")
        if key in NUMBERS and not re.fullmatch(r"[0-9]{1,4}", value):
            raise UserError(f"--slurm {word}: must be a whole number")
        found[OPTIONS[key]] = minutes(word, value) if key == "time" else int(value) if key in NUMBERS else value
    return "local" in words, found


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


def submit(study: Path, name: str, runs: Sequence[Placed], words: Sequence[str], jobs: int) -> list[str]:
    """Submits the runs that are not done and not waiting in the cluster already, as one array.

    Args:
        study: the study folder.
        name: of the study.
        runs: the runs.
        words: what stands behind --slurm.
        jobs: how many run at a time; in a cluster 1 is no limit.

    Returns:
        Lines on what was submitted. With `local`, all have ended.

    Raises:
        UserError: submitit or Slurm is not there, or Slurm refuses the options.
    """
    submitit = demand_submitit()
    local, parameters = options_of(words)
    folder = study / FOLDER
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOOLS.parent), os.environ.get("PYTHONPATH")]))
    known = {} if local else _known(folder / JOBS)
    waiting = {title for title, job in known.items() if submitit.SlurmJob(folder, job).state in WAITING}
    left = [placed for placed in runs if placed.state != "done" and placed.run.title not in waiting]
    lines = [f"{len(waiting)} in the cluster already"] if waiting else []
    if not left:
        return [*lines, "nothing to submit"]
    executor = _executor(submitit, folder, local, {"name": name, **parameters}, jobs)
    calls = [call_of(study, placed) for placed in left]
    if local:
        return [*lines, *_run_here(executor, calls, jobs)]
    try:
        submitted = executor.submit_array(calls)
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"--slurm: sbatch refused: {' '.join(str(error).split())}") from None
    known |= {placed.run.title: job.job_id for placed, job in zip(left, submitted, strict=True)}
    write_json_atomic(folder / JOBS, known)
    first = submitted[0].job_id.partition("_")[0]
    return [*lines, f"submitted       {len(submitted)} as array {first}; logs in {study / LOGS} and {folder}"]


def _known(file: Path) -> dict[str, str]:
    """Returns the job of each run that was submitted before."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {title: job for title, job in found.items() if isinstance(job, str)} if isinstance(found, dict) else {}


def _executor(submitit: Any, folder: Path, local: bool, parameters: dict[str, Any], jobs: int) -> Any:
    parameters = {"timeout_min": 24 * 60, **parameters}
    try:
        options = {} if local else {"slurm_max_num_timeout": RESTARTS}
        executor = submitit.AutoExecutor(folder=folder, cluster="local" if local else "slurm", **options)
    except RuntimeError:
        raise UserError(
            "--slurm: no sbatch on this machine; start it on a login node, or try it with --slurm local"
        ) from None
    if not local:
        parameters["slurm_setup"] = [f"export PYTHONPATH={os.environ['PYTHONPATH']}"]
        parameters |= {"slurm_array_parallelism": jobs} if jobs > 1 else {}
    executor.update_parameters(**parameters)
    return executor


def call_of(study: Path, placed: Placed) -> ClusterRun:
    """Returns the job of a run, after writing its settings."""
    command = training_command(study, placed)
    log = study / LOGS / f"{placed.run.title}.txt"
    return ClusterRun(command, placed.folder.path, log, placed.run.settings.threads)


def _run_here(executor: Any, calls: Sequence[ClusterRun], jobs: int) -> list[str]:
    """Runs jobs with submitit's local executor, which starts each at once; returns a line for each that failed."""
    running: list[Any] = []
    for call in calls:
        while sum(not job.done() for job in running) >= jobs:
            time.sleep(0.2)
        running.append(executor.submit(call))
    lines = []
    for job, call in zip(running, calls, strict=True):
        if (error := job.exception()) is not None:
            why = re.findall(r"^RuntimeError: (.*)", str(error), re.MULTILINE)
            why = why[-1] if why else f"{type(error).__name__}, see {job.paths.stderr}"
            lines.append(f"failed          {call.folder.name}: {why}; log: {call.log}")
    return [*lines, f"{len(calls) - len(lines)} of {len(calls)} jobs came to their end"]
