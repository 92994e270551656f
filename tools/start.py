"""The first thing that every tool calls when it is run as a script. Not a tool itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def prepare() -> None:
    """Lets Ctrl-C end the process without a traceback until `engine.cli` handles it, and makes engine/ importable.

    engine/ and models/ are not installed: tools use those of their own checkout.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
