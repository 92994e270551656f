"""Runs as jobs of a cluster: submitit's local executor with real processes, and Slurm's commands as stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit

from engine.study.execute import child, cluster
from engine.study.execute.cluster import minutes, options_of, submit
from engine.study.execute.study import Study
from engine.study.plan.rows import planned_runs
from models.settings import UserError
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
    call = cluster.call_of(study.folder, placed)
    job = submitit.AutoExecutor(folder=study.folder / cluster.FOLDER, cluster="local").submit(call)
    metrics, saved = placed.folder.metrics_file, placed.folder.path / "saved"
    until(metrics.exists)
    controller = int(job.job_id)
    [process] = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(process), signal.SIGUSR2)
    until(job.done)
    assert saved.exists() and placed.folder.is_finished and job.exception() is None
    assert [row["step"] for row in map(json.loads, metrics.read_text().splitlines())] == [1, 2]


def until(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_the_process_of_a_job_imports_no_torch():
    code = "import sys, engine.study.execute.cluster_run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


SBATCH = """#!/bin/sh
cat "$1" >> {log}
echo "Submitted batch job 77"
"""
SACCT = "#!/bin/sh\nprintf 'JobID|State|NodeList\\n77_0|RUNNING|n1\\n77_1|PENDING|n1\\n77_2|FAILED|n1\\n'\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands; returns the file with what sbatch was given."""
    programs, log = tmp_path / "bin", tmp_path / "sbatch.txt"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(log=log), "srun": "#!/bin/sh\n", "sacct": SACCT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return log


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
    jobs = study.folder / cluster.FOLDER / cluster.JOBS
    jobs.parent.mkdir()
    for text in ('{"a_s0": 5, "b_s0": "77_1"}', "[1]", "{"):
        jobs.write_text(text)
        lines = submit(study.folder, "tiny", study.place().runs, [], jobs=1)
        assert lines[-1].startswith(f"submitted       {2 if 'b_s0' in text else 3} as array 77")


def test_without_slurm(study, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--slurm: no sbatch on this machine"):
        submit(study.folder, "tiny", study.place().runs, [], jobs=1)


def test_options():
    assert options_of(["local"]) == (True, {})
    assert options_of(["time=90", "mem=32GB"]) == (False, {"timeout_min": 90, "slurm_mem": "32GB"})
    assert minutes("", "1-12:00:00") == 36 * 60 and minutes("", "0:30:01") == 31
    for word in ("partitoin=gpu", "partition", "gpus=many", "time=soon", "time=0"):
        with pytest.raises(UserError, match=f"--slurm {word}: "):
            options_of([word])
