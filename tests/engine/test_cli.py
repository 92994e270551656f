"""The frame of the tools; its exit codes are tested in tests/engine/settings/test_layers.py."""

from __future__ import annotations

import io
import sys

import pytest

from engine.cli import cli


@pytest.mark.parametrize(("encoding", "written"), [("ascii", rb"\xb1 \u6f22"), ("utf-8", "± 漢".encode())])
def test_what_the_encoding_of_the_terminal_lacks_is_escaped(monkeypatch, encoding, written):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli(lambda argv: print("± 漢", end="")) == 0
    assert stdout.buffer.getvalue() == written
