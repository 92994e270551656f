"""The frame of the tools; its exit codes are tested in tests/engine/settings/test_layers.py."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from engine.cli import cli, parser_of


@pytest.mark.parametrize(("encoding", "written"), [("ascii", rb"\xb1 \u6f22"), ("utf-8", "± 漢".encode())])
def test_what_the_encoding_of_the_terminal_lacks_is_escaped(monkeypatch, encoding, written):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli(lambda argv: print("± 漢", end="")) == 0
    assert stdout.buffer.getvalue() == written


@pytest.mark.parametrize("command", [[], ["sub"]])
def test_an_empty_path_is_not_the_current_folder(capsys, command):
    """As in `--images "$DIR"` where the variable is not set; also in a list, and in a subcommand."""
    parser = parser_of("Does something.")
    if command:
        parser = parser.add_subparsers().add_parser("sub")
    parser.add_argument("--images", type=Path, nargs="+", default=[Path("here")])
    assert parser.parse_args(["--images", ".", "a.jpg"]).images == [Path(), Path("a.jpg")]
    assert parser.parse_args([]).images == [Path("here")]
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--images", "a.jpg", ""])
    assert "argument --images: the path is empty; give the name of a file or folder" in capsys.readouterr().err
