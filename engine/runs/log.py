"""A run's log: the terminal and log.txt."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

log = logging.getLogger("hybridmerge")


def start_log() -> MemoryHandler:
    """Sends the project's log to the terminal, and keeps it for `log_to` to write down."""
    kept = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    log.setLevel(logging.INFO)
    for handler in log.handlers:
        handler.close()  # the run before, in this process, has ended
    log.handlers = [logging.StreamHandler(sys.stdout), kept]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return kept


def log_to(folder: Path, kept: MemoryHandler) -> None:
    """From now on, and what was kept till now: also to `log.txt` in the run folder."""
    file = logging.FileHandler(folder / "log.txt")
    file.setFormatter(kept.formatter)
    kept.setTarget(file)
    kept.flush()
    log.handlers[1] = file
