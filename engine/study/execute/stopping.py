"""Stopping a study on SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
from types import FrameType


class Asked:
    """A context in which signals to stop are counted; those that were ignored before stay ignored.

    Attributes:
        number: the first signal; 0: there was none.
        times: how many there were.
    """

    def __init__(self) -> None:
        self.number = self.times = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Asked:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, number: int, _: FrameType | None) -> None:
        self.number, self.times = self.number or number, self.times + 1
