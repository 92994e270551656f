"""A run as a job of a cluster: what is submitted, and what a job does when its time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from engine.launch import child
from engine.launch.slurm import minutes, options_of, split_words
from engine.launch.slurm_run import SlurmRun
from engine.runs.folder import RunFolder
from engine.settings.layers import load_settings
from engine.train.submission import submit
from models.settings import UserError
from tests.engine.launch.slurm import until
from tests.engine.launch.test_several_processes import HYBRID, assert_same, config
from tests.paths import ROOT
from tests.processes import ENVIRONMENT

PLAIN = {
    **HYBRID,
    "augment": {},
    "log": {"every_steps": 1, "images": 0},
    "train": {"epochs": 3, "batch_size": 16, "lr": 0.003},
}
ECHO = """
import json, os, sys, time
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
print(json.dumps({"argv": sys.argv[1:], **{name: os.environ.get(name) for name in names}}))
sys.exit(int(os.environ["CODE"]))
"""


def test_options():
    assert options_of(["local"]) == (True, {})
    assert options_of(["time=90", "mem=32GB"]) == (False, {"timeout_min": 90, "slurm_mem": "32GB"})
    assert options_of(["processes=8", "nodes=2"]) == (False, {"tasks_per_node": 8, "nodes": 2})
    assert minutes("", "1-12:00:00") == 36 * 60 and minutes("", "0:30:01") == 31
    for word in ("partitoin=gpu", "partition", "gpus=many", "time=soon", "time=0", "processes=0"):
        with pytest.raises(UserError, match=f"--slurm {word}: "):
            options_of([word])
    with pytest.raises(UserError, match="--slurm local nodes=2: "):
        options_of(["local", "nodes=2"])
    words = ["time=90", "train.lr=1", "name=x", "local"]
    assert split_words(words, ["name"]) == (["time=90", "local"], ["train.lr=1", "name=x"])


def test_the_process_of_a_job_imports_no_torch():
    code = "import sys, engine.launch.slurm_run, engine.launch.slurm; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_each_fold_is_a_job_of_one_array(tmp_path, slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(config(tmp_path, PLAIN, split={"folds": 3}), ["out=runs"])
    words = ["partition=gpu", "gpus=8", "processes=8", "nodes=2", "time=4:00:00"]
    lines = submit(settings, words)
    given = slurm.read_text()
    shape = ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8")
    for option in ("--array=0-2", "--job-name=together", *shape, "--kill-on-bad-exit=1"):
        assert option in given, given
    assert lines[0] == "submitted       3 as array 77; logs in runs/together.slurm and runs/together.slurm/jobs"
    known = json.loads(Path("runs/together.slurm/jobs/jobs.json").read_text())
    assert known == {f"together_fold{fold}": f"77_{fold}" for fold in range(3)}
    assert submit(settings, words)[0] == "2 in the cluster already"  # the third has failed, and is submitted again
    [job] = {path for path in Path("runs/together.slurm/jobs").glob("*_2_submitted.pkl") if "77" in path.name}
    run = submitit.core.utils.DelayedSubmission.load(job).function
    assert run.command[-3:] == ["--cfg", "runs/together.slurm/settings.yaml", "split.fold=2"]
    assert run.folder == Path("runs/together/fold2")


def test_a_folder_that_was_renamed_goes_on_where_it_is(tmp_path, slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(config(tmp_path, PLAIN), ["out=runs"])
    (tmp_path / "moved" / "other").mkdir(parents=True)
    stored = RunFolder("moved/other")
    stored.write_settings(settings)
    submit(settings, [], stored, resume=True)
    written = load_settings(str(tmp_path / "moved" / "other.slurm" / "settings.yaml"))
    assert (written.name, written.out) == ("other", str(tmp_path / "moved"))


def test_what_cannot_be_submitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(config(tmp_path, PLAIN), ["out=runs"])
    Path("runs/together").mkdir(parents=True)
    with pytest.raises(UserError, match="runs/together: is there already; continue it with --resume"):
        submit(settings, ["local"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--slurm: no sbatch on this machine"):
        submit(settings, [], resume=True)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["together"]


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Makes this process a task of a job, of so many; returns its run, which writes its variables into its log."""
    (tmp_path / "train.py").write_text(ECHO)

    def begin(rank: int, tasks: int, code: int = 0) -> SlurmRun:
        variables = {"NTASKS": tasks, "JOB_NUM_NODES": 1, "NODEID": 0, "GLOBALID": rank, "LOCALID": rank, "JOB_ID": 5}
        for name, value in variables.items():
            monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", str(value))
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
        monkeypatch.setenv("CODE", str(code))
        return SlurmRun([sys.executable, str(tmp_path / "train.py")], tmp_path / "run", tmp_path / "log.txt", None)

    return begin


def test_tasks_of_a_job_are_the_processes_of_a_run(tmp_path, task, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    task(0, 2)()
    (tmp_path / "run").mkdir()
    task(1, 2)()
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("log.txt", "log.1.txt"))
    assert (first.pop("RANK"), second.pop("RANK")) == (first.pop("LOCAL_RANK"), second.pop("LOCAL_RANK")) == ("0", "1")
    assert (first.pop("argv"), second.pop("argv")) == ([], ["--resume"])
    assert first == second
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2" and first["OMP_NUM_THREADS"] == "1"
    task(0, 1)()
    assert json.loads((tmp_path / "log.txt").read_text().splitlines()[-1])["RANK"] is None


def test_the_end_of_a_task(task):
    with pytest.raises(SystemExit) as end:
        task(1, 2, code=143)()  # told to save: the first process has the job started again
    assert end.value.code == 0
    for rank, code in ((0, 143), (1, 2)):
        with pytest.raises(RuntimeError):
            task(rank, 2, code)()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)  # where much else runs
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the job's processes in /proc")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_whose_time_is_up_saves_and_ends_with_the_same_result(tmp_path, monkeypatch, processes):
    """Real training: submitit's signal to the job's processes, one checkpoint, and submitit starts the job again."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    command = child.tool("train", "--cfg", config(tmp_path, {**PLAIN, "train": {**PLAIN["train"], "epochs": 8}}))
    assert subprocess.run([*command, "name=whole"], capture_output=True, check=True)
    run = RunFolder(tmp_path / "together")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(tasks_per_node=processes, timeout_min=10)
    job = executor.submit(SlurmRun(command, run.path, tmp_path / "log.txt", 1))
    until(lambda: run.last_checkpoints)
    tasks = children(int(job.job_id))
    for process in [*(own for task in tasks for own in children(task)), *tasks]:  # as Slurm signals all of a job
        os.kill(process, signal.SIGUSR2)
    until(job.done)
    until(lambda: run.is_finished)
    assert job.exception() is None
    assert (tmp_path / "log.txt").read_text().count("stopped; continue with") == 1
    assert_same(tmp_path / "whole", run.path)
