"""Studies as a user runs them: real processes, killed, stopped, failing, and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from engine.runs.checkpoints import checkpoint
from engine.runs.lock import in_use
from tests.engine.study.plans import TINY, write_plan
from tests.tools.test_train import ENVIRONMENT, command, finish

# A run saves after each step, so that little is repeated, and takes seconds.
LONG = TINY.replace("epochs: 2, batch_size: 16", "epochs: 60, batch_size: 8") + "  checkpoint: {every_steps: 1}\n"


@contextmanager
def studying(*args: str, cwd: Path, until: Path) -> Iterator[subprocess.Popen]:
    """A study that has come so far that the file `until` is there. It is killed where a test fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("study.py", *args), cwd=cwd, env=ENVIRONMENT, **pipes) as process:
        try:
            deadline = time.monotonic() + 120
            while not until.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert until.exists(), process.communicate(timeout=10)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def step_of(folder: Path) -> int:
    return checkpoint.load(folder / "last.pt")["progress"]["step"]


def weights_of(folder: Path) -> dict:
    return checkpoint.load(folder / "last.pt")["model"]


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_at_once(tmp_path):
    """kill -9 of the study alone. No run is lost, repeated or trained in two places, and weights are the same bits."""
    write_plan(tmp_path, LONG + "rows: {a: {}}\nseeds: [0, 1]\n")
    runs = tmp_path / "runs" / "tiny" / "runs"
    with studying("plan.yaml", cwd=tmp_path, until=runs / "a_s0" / "last-1.pt") as process:
        process.send_signal(signal.SIGKILL)
    done = finish("study.py", "plan.yaml", cwd=tmp_path)  # the run that was killed may still be saving
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in runs.iterdir()) == ["a_s0", "a_s1"]
    log = (runs / "a_s0" / "log.txt").read_text()
    first, second = map(int, re.findall(r"from step (\d+) of", log))
    assert first == 0 < second
    assert len(re.findall(r"from step", (runs / "a_s1" / "log.txt").read_text())) == 1
    whole = finish("train.py", "--cfg", str(runs / "a_s0" / "settings.yaml"), "out=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    one, other = weights_of(tmp_path / "whole" / "a_s0"), weights_of(runs / "a_s0")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert "| a " in (tmp_path / "runs" / "tiny" / "table.md").read_text()


@pytest.mark.slow
def test_stopped_by_ctrl_c_and_refused_twice(tmp_path):
    """Both runs are saved, nothing is left behind, and a second study in the folder is refused meanwhile."""
    write_plan(tmp_path, LONG + "rows: {a: {}, b: {set: {train.lr: 0.01}}}\njobs: 2\n")
    study = tmp_path / "runs" / "tiny"
    a, b = study / "runs" / "a_s0", study / "runs" / "b_s0"
    with studying("plan.yaml", cwd=tmp_path, until=a / "last-1.pt") as process:
        while not (b / "last-1.pt").exists():
            time.sleep(0.02)
        second = finish("study.py", "plan.yaml", cwd=tmp_path)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert second.stderr.startswith(f"error: runs/tiny: in use by process {process.pid} on ")
        os.kill(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    assert "stopping: a_s0, b_s0 will be saved" in said
    assert said.endswith("stopped; continue with: tools/study.py plan.yaml\n")
    assert not in_use(a) and not in_use(b) and not (a / "results.json").exists()
    steps = step_of(a), step_of(b)
    assert min(steps) > 0
    planned = finish("study.py", "plan.yaml", "--dry-run", "--no-timing", cwd=tmp_path)
    assert planned.stdout.count("to be continued") == 2 and "2 runs, 0 done, 2 left" in planned.stdout


@pytest.mark.slow
def test_a_failed_run_is_passed_over_and_only_what_changed_is_run(tmp_path):
    bad = "{set: {train.lr: 1000, train.warmup_epochs: 0}}"
    write_plan(tmp_path, TINY + f"rows: {{bad: {bad}, good: {{}}}}\n")
    study = tmp_path / "runs" / "tiny"
    first = finish("study.py", "plan.yaml", cwd=tmp_path)
    assert first.returncode == 2
    [line] = first.stderr.splitlines()
    assert line.startswith("error: runs/tiny: 1 job failed, first bad_s0: train.lr = 1000.0: the ")
    assert "see runs/tiny/logs/bad_s0.txt, and start again with: tools/study.py plan.yaml" in line
    assert "error: train.lr = 1000.0" in (study / "logs" / "bad_s0.txt").read_text()
    assert "| good " in (study / "table.md").read_text()

    before = (study / "runs" / "good_s0" / "results.json").read_bytes()
    write_plan(tmp_path, TINY + "rows: {better: {}, bad: {set: {train.lr: 0.01}}}\n")
    second = finish("study.py", "plan.yaml", "threads=2", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert (study / "runs" / "good_s0" / "results.json").read_bytes() == before
    index = {entry["row"]: entry["folder"] for entry in json.loads((study / "runs.json").read_text())}
    assert index["better"] == "runs/good_s0"
    assert (study / index["bad"] / "results.json").exists() and len(index) == 2
    assert "2 runs, 1 done, 1 left" in second.stdout and "[1/1] bad_s0" in second.stdout
    assert "# started as: tools/study.py plan.yaml threads=2\n" in (study / "study.yaml").read_text()


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(tmp_path):
    write_plan(tmp_path, TINY + "rows: {a: {}, b: {set: {data.name: npz, data.path: missing.npz}}}\nseeds: 2\n")
    before = sorted(tmp_path.rglob("*"))
    done = finish("study.py", "plan.yaml", "--dry-run", "jobs=2", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert sorted(tmp_path.rglob("*")) == before
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    titles, _, *cells = rows
    assert titles == ["row", "seed", "GMACs/image", "images x epochs", "GMACs x images", "time", "state"]
    assert cells[0][:4] == ["a", "0", "0.0000666", "258 x 2"] and re.fullmatch(r"\d+ s", cells[0][5])
    assert cells[1][:2] == ["b", "0"] and "cannot start: " in cells[1][6] and "missing.npz" in cells[1][6]
    assert "4 runs, 0 done, 4 left" in done.stdout and "2 at a time" in done.stdout


@pytest.mark.slow
def test_folds_at_the_same_time_and_a_sweep_of_each(tmp_path):
    text = TINY.replace("digits/lenet5", "digits/hybrid").replace("part: 0.2", "part: 0.1")
    write_plan(tmp_path, text + "  model: {embed_dim: 16, depth: 2}\nfolds: 2\njobs: 2\nsweep: merge.r=[0, 8]\n")
    done = finish("study.py", "plan.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "runs" / "tiny"
    assert json.loads((study / "runs" / "digits_hybrid_s0" / "folds.json").read_text())["folds"] == 2
    for fold in range(2):
        rows = json.loads((study / "sweeps" / f"digits_hybrid_s0_fold{fold}.json").read_text())
        assert [(row["key"], row["value"]) for row in rows] == [("merge.r", 0), ("merge.r", 8)]
        assert rows[0]["gmacs"] > rows[1]["gmacs"]
    assert "[4/4]" in done.stdout and "2 folds" in (study / "table.md").read_text()
    again = finish("study.py", "plan.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "[1/" not in again.stdout and "2 runs, 2 done, 0 left" in again.stdout


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    write_plan(tmp_path, TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for more in ([], ["--dry-run"]):
        done = finish("study.py", "plan.yaml", "out=mine", *more, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: mine: holds files, but no study (study.yaml)")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
