"""The commands and Python snippets that the documents contain, found by running their code blocks in a shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.paths import ROOT

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What stands for a value in a document, and a value for it.
PLACEHOLDERS = {
    "METHOD": "tome",
    "MODEL": "resnet18",
    "MODE": "head",
    "SEED": "0",
    "FILE": "file",
    "DTD10": "dtd10",
    "RSSCN7": "rsscn7",
    "NAME": "name",
    "K": "12",
    "MS": "1e9",
}
# A stand-in for every tool: it writes down how many words it was called with, and the words, each with a NUL behind it.
STAND_IN = """#!/bin/sh
printf '%s\\0' $(($# + 1)) "${0##*/}" "$@" >> "$COMMANDS"
"""


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in a language; "" for those that name none."""
    return [text for name, text in BLOCK.findall(document.read_text()) if name == language]


def commands(text: str, folder: Path) -> list[list[str]]:
    """The tools that a shell script calls, with their arguments, as the shell passes them on.

    The script runs in bash, in `folder`, with stand-ins for the tools, so that its loops, variables and line
    continuations mean what they mean to a user. Other programs that it calls do nothing.

    Args:
        text: the script.
        folder: an empty folder.
    """
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"(?<=[=_/.]){name}\b|\b{name}(?=_)", value, text)
    (folder / "tools").mkdir()
    for tool in (ROOT / "tools").glob("*.py"):
        stand_in = folder / "tools" / tool.name
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
    log = folder / "commands.txt"
    log.touch()
    silent = "".join(f"{name}() {{ :; }}; " for name in ("make", "pip", "python", "tensorboard", "git", "cd")) + "\n"
    started = 'torchrun() { while [ "${1#-}" != "$1" ]; do shift; done; "$@"; }\n'  # without its own options
    script = silent + started + text.replace(".venv/bin/python tools/", "tools/").replace(". .venv/bin/activate", ":")
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "COMMANDS": str(log)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stderr}\n{text}"
    words = iter(log.read_text().split("\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]
