"""What every tool does first when it is run as a script. Not a tool itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def prepare() -> None:
    """Makes Ctrl-C end the process without a traceback until `engine.cli` handles it, and finds engine/ and models/.

    engine/ and models/ are not installed: tools use those of the checkout that they lie in.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
