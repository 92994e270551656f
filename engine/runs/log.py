"""The log of a run: on the terminal, and in log.txt once the run folder exists."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

log = logging.getLogger("hybridmerge")


def start_log() -> MemoryHandler:
    """Sends the project's log to the terminal and buffers it until `log_to` names a file.

    Returns:
        The buffer, for `log_to`.
    """
    kept = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    log.setLevel(logging.INFO)
    for handler in log.handlers:
        handler.close()  # the run before, in this process, has ended
    log.handlers = [logging.StreamHandler(sys.stdout), kept]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return kept


def log_to(file: Path, kept: MemoryHandler) -> None:
    """Writes what was buffered into a file, and sends the log there from now on.

    Args:
        file: the run's log.txt.
        kept: what `start_log` returned.
    """
    handler = logging.FileHandler(file)
    handler.setFormatter(kept.formatter)
    kept.setTarget(handler)
    kept.flush()
    log.handlers[1] = handler
