"""Writes docs/errors.md from the table: python -m tests.mistakes.document"""

from __future__ import annotations

from tests.mistakes import SECTIONS
from tests.mistakes.mistake import Mistake
from tests.paths import ROOT

DOCUMENT = ROOT / "docs" / "errors.md"
INTRODUCTION = """# What goes wrong, and what you will see

A mistake ends with exit code 2 and one line, `error: ...`, that names the key or the path, the value, and what to do.
Where a command can go on without harm it warns instead and continues. An exit code of 1 and a traceback is a defect
of ours: please report it.

Each entry has what was done, the command, and the line that it prints; `...` stands for what varies. This page is
written by `python -m tests.mistakes.document` from the table that `tests/mistakes` runs.
"""


def document() -> str:
    """Returns the text of the page."""
    sections = (f"## {name}\n\n" + "\n".join(map(_entry, mistakes)) for name, mistakes in SECTIONS.items() if mistakes)
    return INTRODUCTION + "\n" + "\n".join(sections)


def _entry(mistake: Mistake) -> str:
    kind = "error: " if mistake.code else ""
    return f"**{mistake.title}**\n\n```text\n$ {mistake.command}\n{kind}{mistake.says}\n```\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
