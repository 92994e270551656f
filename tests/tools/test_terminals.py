"""Terminals that are not UTF-8, closed or full: nothing is lost, and files are UTF-8 all the same."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.engine.data.conftest import save_image
from tests.processes import ENVIRONMENT, Process, command
from tests.tools.test_train import QUICK

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}  # Python would take names for ASCII, too
LATIN = {"PYTHONIOENCODING": "latin-1"}
RUN = [
    "--cfg",
    "digits/hybrid",
    *QUICK,
    "data.name=folder",
    "data.path=bîlder",
    "data.size=8",
    "model.in_chans=3",
    "model.num_classes=2",
    "split.part=1",
    "split.folds=2",
    "train.epochs=1",
    "train.batch_size=8",
    "name=ç",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(40):
        save_image(tmp_path / "bîlder" / ("thé", "漢")[i % 2] / f"é{i}.png", i, (8, 8))
    return tmp_path


def finish(tool: str, *args: str, cwd: Path, **environment: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        command(tool, *args), cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_language_of_the_terminal_changes_no_file(folder):
    code, said, errors = finish("train.py", *RUN, cwd=folder, **ASCII)
    assert (code, errors) == (0, b"")
    assert rb"\xb1" in said and rb"runs/\xe7/folds.json" in said and said.isascii()  # the mean and its spread
    run = folder / "runs" / "ç"
    assert set(json.loads((run / "folds.json").read_text(encoding="utf-8"))["confusion"]) == {"thé", "漢"}
    log = (run / "fold0" / "log.txt").read_text(encoding="utf-8")
    assert "ç, fold 0 of 2" in log
    with open(run / "fold0" / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert any("/bîlder/thé/é" in cell for row in rows for cell in row)

    predict = ["--run", "runs/ç", "--images", "bîlder/漢", "--out", "prêt.csv"]
    code, said, errors = finish("predict.py", *predict, cwd=folder, **LATIN)
    assert (code, errors) == (0, b"") and "prêt.csv: ".encode("latin-1") in said
    written = (folder / "prêt.csv").read_text(encoding="utf-8")
    assert len(written.splitlines()) == 21 and ("thé" in written or "漢" in written)


def test_what_is_wrong_is_said_in_any_terminal(folder):
    code, _, errors = finish("data.py", "check", "bîlder/nô", cwd=folder, **ASCII)
    assert code == 2 and errors.startswith(b"error: ") and rb"b\xeelder/n\xf4" in errors and errors.count(b"\n") == 1


@pytest.mark.slow
def test_folds_whose_output_goes_nowhere_are_complete(folder):
    with Process("train.py", *RUN, cwd=folder, out="/dev/full") as process:
        _, errors = process.communicate(timeout=120)
    full = "error: the standard output cannot be written, no space left on device; files are complete\n"
    assert (process.returncode, errors) == (2, full)
    assert json.loads((folder / "runs" / "ç" / "folds.json").read_text())["folds"] == 2
    assert "epoch 1/1" in (folder / "runs" / "ç" / "fold1" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        pytest.param("exec {} >&-", 0, marks=pytest.mark.slow),
        ("{} | head -0; exit ${{PIPESTATUS[0]}}", 141),
        pytest.param("exec {} >/dev/full", 2, marks=pytest.mark.slow),
    ],
)
def test_output_that_nobody_reads_ends_in_no_traceback(tmp_path, shell, expected):
    code, errors = _in_shell(shell, ["--cfg", "digits/hybrid", "--print"], tmp_path)
    assert code == expected and "Traceback" not in errors and errors.count("\n") == (expected == 2)


def _in_shell(shell: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Runs tools/train.py where `shell` has {}; returns the exit code and what was printed as errors."""
    line = shell.format(shlex.join(command("train.py", *arguments)))
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stderr
