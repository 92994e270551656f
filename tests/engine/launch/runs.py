"""Runs of several real processes, started as torchrun does, and what is compared between them."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml

from engine.runs.checkpoints import checkpoint
from tests.processes import ENVIRONMENT, Process

HYBRID = {
    "name": "together",
    "threads": 1,
    "device": "cpu",
    "model": {
        "name": "hybrid",
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "stem": "patch",
        "merge": {"method": "tome", "r": {"train": [0, 4]}},  # drawn for each step, the same in every process
        "cnn": {"block": "convnext", "depth": 1},  # its norms see one image at a time
    },
    "data": {"name": "digits"},
    "split": {"val": 0.1, "part": 0.25},
    "augment": {"crop": 1, "erase": 0.3, "mixup": 0.2, "cutmix": 1.0},
    "train": {"epochs": 2, "batch_size": 16, "accumulate": 2, "lr": 0.003, "ema": 0.9, "label_smoothing": 0.1},
    "log": {"every_steps": 1, "images": 0},
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(stack: ExitStack, cwd: Path, *args: str, size: int = 2) -> list[Process]:
    """Starts the processes of a run, as torchrun does."""
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environments = [{**ENVIRONMENT, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [stack.enter_context(Process("train.py", *args, cwd=cwd, environment=one)) for one in environments]


def ended(processes: list[Process], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout)
        found.append((process.returncode, out, err))
    return found


def trained(cwd: Path, *args: str, size: int = 2) -> Path:
    """Trains to the end; returns the run folder."""
    with ExitStack() as stack:
        first, *others = ended(started(stack, cwd, *args, size=size))
    assert first[0] == 0, first
    assert all(other == (0, "", "") for other in others), others
    return Path(first[1].partition("run folder")[2].split()[0])


def config(folder: Path, tree: dict = HYBRID, **sections) -> str:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**tree, "out": str(folder), **sections}))
    return str(file)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, other: Path) -> None:
    """Every line and the kept weights, up to rounding."""
    lines = [metrics(one) for one in (run, other)]
    assert len(lines[0]) == len(lines[1])
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys() and one["step"] == two["step"]
        for key in one:
            if key.startswith(("train/", "val/", "lr")):
                assert two[key] == pytest.approx(one[key], abs=2e-5), (one["step"], key)
    states = [checkpoint.load(one / "best.pt") for one in (run, other)]
    assert states[0]["step"] == states[1]["step"] and states[0]["model"].keys() == states[1]["model"].keys()
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], value, atol=2e-4, rtol=1e-4, msg=name)
    tests = [json.loads((one / "results.json").read_text()) for one in (run, other)]
    assert tests[0]["test_images"] == tests[1]["test_images"]
    assert tests[1]["test_loss"] == pytest.approx(tests[0]["test_loss"], abs=1e-4)


def wait_for(file: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert file.exists()
