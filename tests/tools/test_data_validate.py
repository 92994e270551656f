"""tools/data.py validate: exit codes, what is said where, and against which names."""

from __future__ import annotations

import sys

import pytest

from engine.cli import cli
from tests.tools.colours import colour_run
from tools import data as tool

SAMPLE = "ID,Label\n1.jpg,1\n2.jpg,1\n10.jpg,1\n"
GOOD = "ID,Label\n1.jpg,10\n2.jpg,2\n10.jpg,2\n"


@pytest.fixture
def tell(tmp_path, capsys, monkeypatch):
    """Exit code, stdout and stderr for a submission's text."""
    (tmp_path / "sample.csv").write_text(SAMPLE)

    def call(text, *args):
        (tmp_path / "mine.csv").write_text(text)
        line = [str(tmp_path / "mine.csv"), "--sample", str(tmp_path / "sample.csv"), *map(str, args)]
        monkeypatch.setattr(sys, "argv", ["data.py", "validate", *line])
        code = cli(tool.main)
        return code, *capsys.readouterr()

    return call


def test_a_right_file(tell, tmp_path):
    for name in ("1", "10", "2"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    code, out, err = tell(GOOD, "--classes", tmp_path / "classes")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'mine.csv'}: valid; 3 rows, 2 of 3 labels; most often '2' (2), least '10' (1)\n"
    code, out, err = tell(GOOD, "--run", colour_run(tmp_path / "run"))
    assert code == 0 and "valid; 3 rows, 2 of 3 labels" in out
    code, out, err = tell(GOOD)
    assert code == 0 and "warning: labels are not compared with a list of classes" in out


def test_every_mistake_and_one_line_at_the_end(tell, tmp_path):
    for name in ("1", "10", "2"):
        (tmp_path / "classes" / "train" / name).mkdir(parents=True)
    text = "ID,Label\n1.jpg,10\n1.jpg,3\n10.jpg,\n7.jpg,=x\n"
    code, out, err = tell(text, "--classes", tmp_path / "classes")
    said = out.splitlines()
    assert code == 2 and len(said) == 6 and all(line.startswith("wrong: ") for line in said)
    for words in (
        "'=x' (line 5)",
        "more than once: '1.jpg'",
        "missing: '2.jpg'",
        "not in the sample: '7.jpg'",
        "1 row has no label: line 4",
        "2 labels are unknown: '3' (1 row), '=x' (1 row)",
    ):
        assert words in out
    assert (
        err.startswith(f"error: {tmp_path / 'mine.csv'}: 6 kinds of mistakes, listed above; ") and err.count("\n") == 1
    )


def test_one_label_for_all_is_a_warning(tell):
    code, out, _ = tell(SAMPLE)
    assert code == 0 and "warning: every row says '1'" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--classes", "no"], "--classes no: no such folder"),
        (["--run", "no"], "no: not a run folder"),
        (["--sample", "no.csv"], "no.csv: No such file or directory"),
    ],
)
def test_wrong_arguments(tell, args, words):
    code, out, err = tell(GOOD, *args)
    assert (code, out) == (2, "") and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_a_command_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data.py"])
    with pytest.raises(SystemExit, match="2"):
        cli(tool.main)
    assert "COMMAND" in capsys.readouterr().err
