"""tools/zeroshot.py as real processes: killed in the middle and run again, and two of them in one folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from engine.runs.lock import take_lock
from engine.study.zeroshot.rows import ZeroshotRow
from models.settings import UserError
from tests.engine.study.zeroshot.conftest import make_files
from tests.processes import Process, finish
from tools import zeroshot

ARGS = ["--cfg", "small.yaml", "methods=[tome]", "budgets=[{r: 1}, {r: 2}, {r: 4, first_block: 3}]"]
ROWS = 4  # the unmerged model, and one for each budget
LONG = 300  # seconds after which a process has surely failed


def test_a_comparison_that_was_killed_goes_on_where_it_was(tmp_path):
    make_files(tmp_path)
    folder = tmp_path / "runs" / "small"
    before = _killed_after(2, folder, tmp_path)
    assert 2 <= len(before) < ROWS
    for content in before.values():
        assert len(ZeroshotRow.checked(json.loads(content)).predicted) == 18  # whole, for every image
    assert not (folder / "zeroshot.json").exists()

    again = finish("zeroshot.py", *ARGS, cwd=tmp_path, timeout=LONG)
    assert again.returncode == 0 and again.stderr == ""
    after = _rows(folder)
    assert len(after) == ROWS
    # An evaluation would have taken another time, which is in the row.
    assert {name: after[name] for name in before} == before
    record = json.loads((folder / "zeroshot.json").read_text())
    with np.load(folder / "predictions.npz") as arrays:
        assert len(record["rows"]) == len(arrays["rows"]) == ROWS
        right = (arrays["predicted"] == arrays["targets"]).mean(axis=1)
    assert [row["top1"] for row in record["rows"]] == right.tolist()
    wanted = {".lock", "rows", "predictions.npz", "table.md", "zeroshot.json"}
    assert {path.name for path in folder.iterdir()} == wanted, "and nothing that is half-written"
    assert len(list((folder / "rows").iterdir())) == ROWS


def test_two_processes_do_not_work_in_one_folder(tmp_path, monkeypatch):
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/small")
    folder.mkdir(parents=True)
    with take_lock(folder, resume=True), pytest.raises(UserError, match="runs/small: in use by process"):
        zeroshot.main([*ARGS, "threads=null"])
    assert not (folder / "rows").exists()


def _rows(folder: Path) -> dict[str, str]:
    """The files of the rows that are evaluated, by name."""
    return {file.name: file.read_text() for file in (folder / "rows").glob("[!.]*.json")}


def _killed_after(number: int, folder: Path, cwd: Path) -> dict[str, str]:
    """Starts the comparison and kills it when so many rows are there; returns what they hold."""
    with Process("zeroshot.py", *ARGS, cwd=cwd) as process:
        deadline = time.monotonic() + LONG
        while process.poll() is None and len(_rows(folder)) < number and time.monotonic() < deadline:
            time.sleep(0.01)
    return _rows(folder)
