"""The first thing that every tool calls when it is run as a script. Not a tool itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def prepare() -> None:
    """Makes the process one in which files, names and signals mean the same everywhere.

    - Ctrl-C ends it without a traceback until `engine.cli` handles it.
    - Names of files are UTF-8 whatever the language of the terminal; Python decides this when it starts, so that it is
      started again where it decided otherwise. What is printed has the terminal's encoding.
    - A standard stream that is closed is /dev/null: a file opened later would take its place, and what is printed.
    - engine/ is importable; engine/ and models/ are not installed, and tools use those of their own checkout.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.getfilesystemencoding() != "utf-8":
        terminal = getattr(sys.stdout, "encoding", "utf-8")
        environment = {"PYTHONIOENCODING": terminal, **os.environ}
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
