"""Training that is stopped or killed, as real processes: what it leaves behind, and what it comes to in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.runs.checkpoints import checkpoint
from tests.engine.data.conftest import save_image
from tests.paths import ROOT
from tests.processes import ENVIRONMENT, command, finish
from tests.tools.test_train import QUICK, training

FILES = [
    "data.name=folder",
    "data.path=images",
    "data.size=8",
    "data.cache=none",
    "data.workers=2",
    "model.in_chans=3",
    "model.num_classes=2",
    "split.part=1",
    "train.batch_size=8",
]


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(40):
        save_image(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", i, (8, 8))
    return tmp_path


@pytest.mark.slow  # a loader whose processes hang is closed in test_workers.py
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_workers_that_hang_do_not_keep_a_stopped_run_alive(images, number):
    """As on a file server that is gone. The step that is done is saved, and the run ends as if nothing had been."""
    args = ["--cfg", "digits/hybrid", *QUICK, *FILES, "train.epochs=300"]
    folder = images / "runs" / "hung"
    with training(*args, "name=hung", cwd=images, until=folder / "last.pt") as process:
        workers = _children(process.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        time.sleep(0.3)  # until the run waits for them
        started = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 10  # with what Python needs to end
    assert process.returncode == 128 + number and errors == ""
    assert "stopped; continue with: tools/train.py --resume runs/hung" in output
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    state = checkpoint.load(folder / "last.pt")
    assert state["progress"]["step"] > 0
    assert state["lines"] == len((folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_closed_terminal_does_not_stop_a_run_under_nohup(tmp_path):
    args = ["--cfg", "digits/hybrid", *QUICK, "train.epochs=3", "name=kept"]
    folder = tmp_path / "runs" / "kept"
    with subprocess.Popen(
        ["nohup", *command("train.py", *args)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 60
        while not (folder / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0 and (folder / "results.json").exists()


@pytest.mark.slow  # what the signal does is tested in one process
def test_a_stopped_terminal_session_resumes_to_the_same_weights(tmp_path):
    args = ["--cfg", "digits/hybrid", *QUICK, "train.epochs=4", "log.images=0"]
    folder = tmp_path / "runs" / "closed"
    with training(*args, "name=closed", cwd=tmp_path, until=folder / "best.pt") as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP and not (folder / "results.json").exists()
    for more in (["--resume", str(folder)], [*args, "name=whole"]):
        assert finish("train.py", *more, cwd=tmp_path).returncode == 0
    one, other = (checkpoint.load(tmp_path / "runs" / run / "last.pt")["model"] for run in ("whole", "closed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_a_dozen_kills_while_saving_change_nothing(tmp_path):
    """tests/soak/kills.py in short: weights, optimizer, metrics, results and predictions are the same, bit for bit."""
    short = ["tests.soak.kills", "--runs", "2", "--kills", "6", "--cases", "run", "--aimed"]
    done = subprocess.run(
        [sys.executable, "-m", *short], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "2 of 2 killed runs ended bit-identical, after 12 kills" in done.stdout, done


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
