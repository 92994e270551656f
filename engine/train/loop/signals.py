"""Stopping on SIGINT and SIGTERM: the first signal ends the step and saves, the second ends the program at once."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """A context in which a signal to stop is recorded, and takes effect where `leave_if_asked` is called."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(128 + number)
        self.asked = number

    def leave_if_asked(self, folder: Path) -> None:
        """Ends the program with the shell's exit code for the signal, if there was one."""
        if self.asked:
            print(f"stopped; continue with: tools/train.py --resume {folder}", flush=True)
            raise SystemExit(128 + self.asked)
