"""Studies as a user runs them: their runs are real processes, killed, stopped, failing, and started again.

Most of them are forked, since importing torch is what takes the time. The runs of a study in the test's own process
start as a user's do, each in a Python of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from engine.launch import child
from engine.runs.checkpoints import checkpoint
from engine.runs.lock import in_use
from tests.engine.study import stand_in
from tests.engine.study.plans import TINY, write_plan
from tests.processes import ENVIRONMENT, Process, finish
from tests.tools.test_train import run_inside
from tools import study as study_tool
from tools import train as train_tool

# A run that saves often, so that it is in the middle when it is stopped.
LONG = TINY.replace("epochs: 2, batch_size: 16", "epochs: 6, batch_size: 8")
LONG += "  checkpoint: {every_steps: 3}\n  log: {images: 0}\n"
STUDY = Path("runs") / "tiny"
PATIENCE = 600  # seconds: an overloaded machine imports torch for minutes


@pytest.fixture
def study(tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Runs tools/study.py in a forked process, in the test's folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        done = finish("study.py", *arguments, cwd=tmp_path, timeout=PATIENCE)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def inside(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs tools/study.py in this process, in the test's folder; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, ENVIRONMENT[name])

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_inside(study_tool, *arguments, monkeypatch=monkeypatch)
        return code, *capsys.readouterr()

    return run


@contextmanager
def studying(*args: str, cwd: Path, until: list[Path]) -> Iterator[Process]:
    """A study in a process that has come so far that files are there. It is killed where a test fails."""
    with Process("study.py", *args, cwd=cwd) as process:
        deadline = time.monotonic() + PATIENCE
        while not all(path.exists() for path in until) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate(timeout=10)
        yield process


def weights_of(folder: Path) -> dict:
    return checkpoint.load(folder / "last.pt")["model"]


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_at_once(tmp_path, study, monkeypatch):
    """kill -9 of the study alone. No run is lost, repeated or trained in two places, and weights are the same bits."""
    write_plan(tmp_path, LONG + "rows: {a: {}}\nseeds: [0, 1]\n")
    runs = STUDY / "runs"
    with studying("plan.yaml", cwd=tmp_path, until=[tmp_path / runs / "a_s0" / "last-1.pt"]) as process:
        process.send_signal(signal.SIGKILL)
    code, said, errors = study("plan.yaml")  # the run may still be saving
    assert (code, errors) == (0, ""), said
    assert sorted(path.name for path in runs.iterdir()) == ["a_s0", "a_s1"]
    starts = [re.findall(r"from step (\d+) of", (runs / name / "log.txt").read_text()) for name in ("a_s0", "a_s1")]
    assert len(starts[0]) == 2 and 0 == int(starts[0][0]) < int(starts[0][1]) and starts[1] == ["0"]
    assert "| a " in (STUDY / "table.md").read_text()
    whole = ["--cfg", str(runs / "a_s0" / "settings.yaml"), "out=whole"]
    assert run_inside(train_tool, *whole, monkeypatch=monkeypatch) == 0
    one, other = weights_of(Path("whole") / "a_s0"), weights_of(runs / "a_s0")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_stopped_by_ctrl_c_and_refused_twice(tmp_path, study):
    """Both runs are saved, nothing is left behind, and a second study in the folder is refused meanwhile."""
    write_plan(tmp_path, LONG.replace("epochs: 6", "epochs: 6000") + "rows: {a: {}, b: {set: {train.lr: 0.01}}}\n")
    a, b = STUDY / "runs" / "a_s0", STUDY / "runs" / "b_s0"
    begun = [tmp_path / run / "last-1.pt" for run in (a, b)]
    with studying("plan.yaml", "--jobs", "2", cwd=tmp_path, until=begun) as process:
        code, _, errors = study("plan.yaml")
        assert code == 2 and errors.count("\n") == 1
        assert errors.startswith(f"error: runs/tiny: in use by process {process.pid} on ")
        os.kill(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and errors == ""
    assert "stopping: a_s0, b_s0 will be saved" in said
    assert said.endswith("stopped; continue with: tools/study.py plan.yaml jobs=2\n")
    assert not in_use(a) and not in_use(b) and not (a / "results.json").exists()
    assert all(checkpoint.load(run / "last.pt")["progress"]["step"] > 0 for run in (a, b))
    _, planned, _ = study("plan.yaml", "--dry-run", "--no-timing")
    assert planned.count("to be continued") == 2 and "2 runs, 0 done, 2 left" in planned


@pytest.mark.slow
def test_a_failed_run_is_passed_over_and_only_what_changed_is_run(tmp_path, study, inside):
    bad = "{set: {train.lr: 1000, train.warmup_epochs: 0}}"
    write_plan(tmp_path, TINY + f"rows: {{bad: {bad}, good: {{}}}}\n")
    code, said, errors = study("plan.yaml")
    assert code == 2, said
    [line] = errors.splitlines()
    assert line.startswith("error: runs/tiny: 1 job failed, first bad_s0: train.lr = 1000.0: the ")
    assert "see runs/tiny/logs/bad_s0.txt, and start again with: tools/study.py plan.yaml" in line
    assert "error: train.lr = 1000.0" in (STUDY / "logs" / "bad_s0.txt").read_text()
    assert "| good " in (STUDY / "table.md").read_text()

    before = (STUDY / "runs" / "good_s0" / "results.json").read_bytes()
    write_plan(tmp_path, TINY + "rows: {better: {}, bad: {set: {train.lr: 0.01}}}\n")
    code, said, errors = inside("plan.yaml", "threads=2")
    assert (code, errors) == (0, ""), said
    assert (STUDY / "runs" / "good_s0" / "results.json").read_bytes() == before
    index = {entry["row"]: entry["folder"] for entry in json.loads((STUDY / "runs.json").read_text())}
    assert index["better"] == "runs/good_s0"
    table = json.loads((STUDY / "table.json").read_text())["rows"]
    assert [row["name"] for row in table] == ["better", "bad"]
    assert (STUDY / index["bad"] / "results.json").exists() and len(index) == 2
    assert "2 runs, 1 done, 1 left" in said and "[1/1] bad_s0" in said
    assert "# started as: tools/study.py plan.yaml threads=2\n" in (STUDY / "study.yaml").read_text()


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(tmp_path, study):
    write_plan(tmp_path, TINY + "rows: {a: {}, b: {set: {data: {name: npz, path: missing.npz}}}}\nseeds: 2\n")
    before = sorted(tmp_path.rglob("*"))
    code, said, errors = study("plan.yaml", "--dry-run", "jobs=2")
    assert (code, errors) == (0, "") and sorted(tmp_path.rglob("*")) == before
    titles, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if "| " in line]
    assert titles == ["row", "seed", "GMACs/image", "images x epochs", "GMACs x images", "time", "state"]
    assert rows[0][:4] == ["a", "0", "0.0000666", "259 x 2"] and re.fullmatch(r"\d+ (s|min)", rows[0][5])
    assert rows[1][:2] == ["b", "0"] and "cannot start: " in rows[1][6] and "missing.npz" in rows[1][6]
    assert "4 runs, 0 done, 4 left" in said and "2 at a time" in said


@pytest.mark.slow
def test_a_fold_and_its_sweep(tmp_path, study):
    text = TINY.replace("digits/lenet5", "digits/hybrid").replace("part: 0.2", "part: 0.1, folds: 2")
    write_plan(tmp_path, text + "  model: {embed_dim: 16, depth: 2}\nfolds: [1]\nsweep: merge.r=[0, 8]\n")
    code, said, errors = study("plan.yaml")
    assert (code, errors) == (0, ""), said
    assert (STUDY / "runs" / "digits_hybrid_s0" / "fold1" / "results.json").exists()
    rows = json.loads((STUDY / "sweeps" / "digits_hybrid_s0_fold1.json").read_text())
    assert [row["value"] for row in rows] == [0, 8]
    table = json.loads((STUDY / "table.json").read_text())["rows"]
    assert [row["name"] for row in table] == ["digits_hybrid", "digits_hybrid, r = 0", "digits_hybrid, r = 8"]
    assert table[1]["score_percent"] == pytest.approx(100 * rows[0]["top1"])
    for name in ("table.csv", "table.md", "pareto.png", "page.html"):
        assert (STUDY / name).stat().st_size > 0
    assert rows[0]["gmacs"] > rows[1]["gmacs"]
    code, said, _ = study("plan.yaml")
    assert code == 0 and "[1/" not in said and "1 run, 1 done, 0 left" in said  # nor is the sweep made again


def test_report_beside_slurm_is_refused(tmp_path, inside):
    write_plan(tmp_path, TINY)
    code, _, errors = inside("plan.yaml", "--slurm", "local", "--report")
    assert code == 2 and errors.startswith("error: --slurm: submits what is left, and --report trains nothing")
    assert not STUDY.exists()


def test_nothing_is_written_where_there_is_no_slurm(tmp_path, inside, monkeypatch):
    write_plan(tmp_path, TINY)
    monkeypatch.setenv("PATH", "")
    code, _, errors = inside("plan.yaml", "--slurm")
    assert code == 2 and errors.startswith("error: --slurm: no sbatch on this machine")
    assert not STUDY.exists()


def test_damaged_results_are_named(tmp_path, inside, monkeypatch):
    monkeypatch.setattr(child, "TOOLS", stand_in.install(tmp_path))
    write_plan(tmp_path, TINY)
    assert inside("plan.yaml")[0] == 0
    (STUDY / "runs" / "digits_lenet5_s0" / "results.json").write_text("{")
    for arguments, says in (
        (("--dry-run", "--no-timing"), "damaged, not done: "),
        (("--report",), "left out, damaged: "),
    ):
        code, said, _ = inside("plan.yaml", *arguments)
        assert code == 0 and f"{says}{STUDY}/runs/digits_lenet5_s0/results.json: " in said


def test_a_folder_of_other_files_is_left_alone(tmp_path, inside):
    write_plan(tmp_path, TINY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for more in ([], ["--dry-run"]):
        code, _, errors = inside("plan.yaml", "out=mine", *more)
        assert code == 2 and errors.startswith("error: mine: holds files, but no study (study.yaml)")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
