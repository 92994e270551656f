"""Runs of a study as jobs of a cluster: submitit's local executor with real processes, stand-ins for Slurm."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import submitit

from engine.launch import child
from engine.launch.slurm import JOBS
from engine.study.execute import cluster
from engine.study.execute.cluster import submit
from engine.study.execute.study import Study
from engine.study.plan.rows import planned_runs
from models.settings import UserError
from tests.engine.launch.slurm import until
from tests.engine.study import stand_in
from tests.engine.study.plans import TINY, plan_of
from tests.paths import ROOT

ROWS = "rows: {a: {}, b: {set: {train.lr: 0.01}}, bad: {set: {train.lr: 500}}}\n"


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child, "TOOLS", stand_in.install(tmp_path))
    plan = plan_of(tmp_path, TINY + ROWS)
    study = Study(plan, planned_runs(plan))
    study.open().close()
    return study


def test_local_jobs_train_and_a_failed_one_is_named(study):
    lines = submit(study.folder, "tiny", study.place().runs, ["local"], jobs=2)
    assert [placed.state for placed in study.place().runs] == ["done", "done", "started"]
    assert lines[-1] == "2 of 3 jobs came to their end"
    assert lines[0].startswith("failed          bad_s0: train.lr = 500.0: diverged; log: runs/tiny/logs/bad_s0.txt")
    again = submit(study.folder, "tiny", study.place().only_done().runs, ["local"], jobs=1)
    assert again == ["nothing to submit"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the job's process in /proc")
def test_a_job_whose_time_is_up_saves_and_goes_on(study, monkeypatch):
    """As on a cluster: submitit's signal to the job, our checkpoint, and the job that submitit starts again."""
    monkeypatch.setenv("EPOCH_SECONDS", "3")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    placed = study.place().runs[0]
    call = cluster.job_of(study.folder, placed)
    job = submitit.AutoExecutor(folder=study.folder / cluster.FOLDER, cluster="local").submit(call)
    metrics, saved = placed.folder.metrics_file, placed.folder.path / "saved"
    until(metrics.exists)
    controller = int(job.job_id)
    [process] = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(process), signal.SIGUSR2)
    until(job.done)
    assert saved.exists() and placed.folder.is_finished and job.exception() is None
    assert [row["step"] for row in map(json.loads, metrics.read_text().splitlines())] == [1, 2]


def test_slurm_gets_one_array_and_nothing_twice(study, slurm):
    words = ["partition=gpu", "time=4:00:00", "gpus=1", "cpus=8", "account=lab"]
    lines = submit(study.folder, "tiny", study.place().runs, words, jobs=2)
    given = slurm.read_text()
    wanted = ("--partition=gpu", "--time=240", "--gpus-per-node=1", "--cpus-per-task=8", "--account=lab")
    for option in (*wanted, "--array=0-2%2", "--job-name=tiny", "export PYTHONPATH="):
        assert option in given, given
    assert lines == ["submitted       3 as array 77; logs in runs/tiny/logs and runs/tiny/slurm"]
    assert json.loads((study.folder / "slurm" / "jobs.json").read_text()) == {
        "a_s0": "77_0",
        "b_s0": "77_1",
        "bad_s0": "77_2",
    }
    slurm.unlink()
    lines = submit(study.folder, "tiny", study.place().runs, words, jobs=1)
    assert lines[0] == "2 in the cluster already" and lines[1].startswith("submitted       1 as array 77")
    assert "--array" not in slurm.read_text() or "--array=0-0" in slurm.read_text()


def test_a_damaged_file_of_jobs_is_no_end(study, slurm):
    jobs = study.folder / cluster.FOLDER / JOBS
    jobs.parent.mkdir()
    for text in ('{"a_s0": 5, "b_s0": "77_1"}', "[1]", "{"):
        jobs.write_text(text)
        lines = submit(study.folder, "tiny", study.place().runs, [], jobs=1)
        assert lines[-1].startswith(f"submitted       {2 if 'b_s0' in text else 3} as array 77")


def test_without_slurm(study, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--slurm: no sbatch on this machine"):
        submit(study.folder, "tiny", study.place().runs, [], jobs=1)
