"""Every mistake of the table is made, and what the user reads is what the table says."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from contextlib import suppress

import pytest

from engine.cli import cli
from tests.mistakes import SECTIONS
from tests.mistakes.document import DOCUMENT, document
from tests.mistakes.mistake import Mistake

# While tests are collected: submitit closes all handlers of logging as it is imported, and absl's, which NNCF brings,
# closes the stream that it writes to if that is not sys.stderr by then, as in a test that captures its output.
with suppress(ImportError):
    import submitit  # noqa: F401

MISTAKES = [mistake for mistakes in SECTIONS.values() for mistake in mistakes]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_user_is_told(mistake: Mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    held = None if mistake.make is None else mistake.make(tmp_path)
    capsys.readouterr()
    tool, *arguments = shlex.split(mistake.command)
    name = re.fullmatch(r"tools/(\w+)\.py", tool)[1]
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    code = cli(importlib.import_module(f"tools.{name}").main)
    del held  # such as a lock, until now
    # The page shows paths as the user typed them.
    out, err = (text.replace(f"{tmp_path}/", "") for text in capsys.readouterr())
    assert code == mistake.code, out + err
    pattern = ".*".join(re.escape(part) for part in mistake.says.split("..."))
    if code:
        last = err.splitlines()[-1]
        assert re.fullmatch("error: " + pattern, last), f"{last!r}\n{out}"
        assert "Traceback" not in out + err
    else:
        assert re.search(pattern, out + err), out + err


def test_titles_are_unique():
    titles = [mistake.title for mistake in MISTAKES]
    assert len(set(titles)) == len(titles)


def test_the_document_is_written_from_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python -m tests.mistakes.document"
