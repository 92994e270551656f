"""The frame of the tools; its exit codes are tested in tests/engine/settings/test_layers.py."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path

import pytest

from engine.cli import cli, parser_of
from engine.runs.log import log, start_log
from models.settings import UserError


@pytest.mark.parametrize(("encoding", "written"), [("ascii", rb"\xb1 \u6f22"), ("utf-8", "± 漢".encode())])
def test_what_the_encoding_of_the_terminal_lacks_is_escaped(monkeypatch, encoding, written):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli(lambda argv: print("± 漢", end="")) == 0
    assert stdout.buffer.getvalue() == written


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second one in the C locale
def test_what_neither_is_text_nor_in_the_encoding_is_escaped(monkeypatch, errors):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli(lambda argv: print("± caf\udce9", end="")) == 0
    assert stdout.buffer.getvalue() == rb"\xb1 caf\udce9"


class Failing(io.RawIOBase):
    """A stream that cannot be written, with the number of the error."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def writable(self):
        return True

    def write(self, _):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EPIPE, 141)])
def test_output_that_cannot_be_written_loses_no_work(monkeypatch, capfd, number, code):
    """What comes after the failed line is done, and the exit code tells."""
    stdout, done = io.TextIOWrapper(io.BufferedWriter(Failing(number))), []

    def main(_):
        print("line", flush=True)
        log.info("line")
        done.append("file")
        print("line")

    monkeypatch.setattr(sys, "stdout", stdout)
    handler = []
    with monkeypatch.context() as patch:
        patch.setattr(log, "handlers", handler)
        patch.setattr(log, "propagate", False)
        assert cli(lambda argv: (start_log(), main(argv))) == code
    assert done == ["file"]
    said = "error: the standard output cannot be written, no space left on device; files are complete\n"
    assert capfd.readouterr().err == (said if code == 2 else "")
    with contextlib.suppress(OSError):
        stdout.detach().close()


def test_a_mistake_is_one_line_although_the_output_cannot_be_written_either(monkeypatch, capfd):
    def main(_):
        print("line")
        raise UserError("a = 1: wrong; use 2")

    stdout = io.TextIOWrapper(io.BufferedWriter(Failing(errno.ENOSPC)))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli(main) == 2
    assert capfd.readouterr().err == "error: a = 1: wrong; use 2\n"
    with contextlib.suppress(OSError):
        stdout.detach().close()


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
