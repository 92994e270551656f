"""Sends the log of a run to the terminal and, once the run folder exists, to log.txt."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from engine.files import writing

log = logging.getLogger("hybridmerge")


def start_log(*, says: bool = True) -> MemoryHandler:
    """Sends the project's log to the terminal and buffers it until `log_to` names a file.

    Args:
        says: whether it goes to the terminal at all; of several processes that train together, one says it.

    Returns:
        The buffer, for `log_to`.
    """
    buffer = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    log.setLevel(logging.INFO)
    for handler in log.handlers:
        handler.close()  # of an earlier run in this process
    log.handlers = [logging.StreamHandler(sys.stdout) if says else logging.NullHandler(), buffer]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return buffer


def log_to(file: Path, buffer: MemoryHandler) -> None:
    """Writes the buffered messages to a file, and sends the log there from now on.

    Args:
        file: the run's log.txt.
        buffer: the buffer that `start_log` returned.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(file):
        handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(buffer.formatter)
    buffer.setTarget(handler)
    buffer.flush()
    log.handlers[1] = handler
