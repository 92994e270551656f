"""Stopping on SIGINT, SIGTERM and SIGHUP: the first signal ends the step and saves, the second ends the program."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Raised in the middle of a wait by a signal to stop. Like KeyboardInterrupt, it passes `except Exception`."""


class Stopping:
    """A context in which a signal to stop is recorded.

    It takes effect where `leave_if_asked` is called, and at once while `waiting` waits. A signal that was ignored when
    the program started stays ignored, such as SIGHUP under nohup.

    Args:
        patient: whether a signal waits for the end of a step, and a second one does nothing. Of several processes that
            train together, all have to end the same step, and torchrun sends them again what a terminal has sent.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.patient = patient
        self.heard = 0  # the signal's number
        self.asked = 0  # the same once it takes effect: where it is patient, when the caller says so
        self._waiting = False
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items of an iterator whose next item may take for ever, such as a batch from a dead file server.

        Raises:
            Stopped: a signal came while an item was waited for, or before.
        """
        iterator = iter(items)
        while True:
            self._waiting = not self.patient
            try:
                if self.asked:  # between the last item and this wait
                    raise Stopped
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    def _remember(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker process that has just been forked; the main process is the one to stop
        if self.patient:
            self.heard = self.heard or number
            return
        if self.asked:
            for other in self._before:
                signal.signal(other, signal.SIG_DFL)  # a third signal ends what still hangs
            raise SystemExit(128 + number)
        self.heard = self.asked = number
        if self._waiting:
            raise Stopped

    def leave_if_asked(self, folder: Path, *, says: bool = True) -> None:
        """Ends the program with the shell's exit code for the signal, if there was one; `says` how to continue."""
        if self.asked:
            if says:
                print(f"stopped; continue with: tools/train.py --resume {folder}", flush=True)
            raise SystemExit(128 + self.asked)
