"""The run folder: one process at a time works in it, and each file in it is whole, old or new, after any crash."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

from engine.files import replacing, writing
from engine.runs.results import RESULTS
from models.settings import UserError

LOCK = ".lock"


# What training writes into a run folder, or into that of all folds.
FILES = {
    "settings.yaml",
    RESULTS,
    "folds.json",
    "metrics.jsonl",
    "predictions.csv",
    "confusion.png",
    "confused.png",
    "best.pt",
    "last.pt",
    "log.txt",
}


logger = logging.getLogger("hybridmerge.run")


class Run:
    """A run folder that this process holds.

    The lock lasts until `close`, the end of a `with` block, or the end of the process, whichever comes first; the
    kernel releases it, so that kill -9 leaves nothing to clean up.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(path: str | Path, resume: bool = False) -> Run:
    """Makes the run folder `path` where it is missing, and takes it for this process alone.

    Raises:
        UserError: another process is in it; it holds a run and `resume` is off; there is none and `resume` is on; or
            files cannot be made, replaced and deleted in it.
    """
    path = Path(path)
    with writing(path):
        if resume and not path.is_dir():
            raise UserError(f"{path}: no run to resume here; start one without --resume, or check name= and out=")
        if not resume and not (path / LOCK).exists():
            _check_empty(path)  # before anything is written into a folder that may not be ours
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            if not resume:
                _check_empty(path)
            _check_writable(path)
        except BaseException:
            os.close(lock)
            raise
    return Run(path, lock)


def _lock(path: Path) -> int:
    """Takes the lock file of the folder and writes process and host into it; returns its file descriptor."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise UserError(f"{path}: in use by {holder}; wait for it or stop it, or use another name=") from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s: cannot be locked (%s); start no second run in it", path, error.strerror)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return lock


def _check_empty(path: Path) -> None:
    if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        raise UserError(f"{path}: holds files already; continue that run with --resume, or use another name= or out=")


def _check_writable(path: Path) -> None:
    """Makes, replaces and deletes a file: what every checkpoint will need, better tried now than after an epoch."""
    probe = path / ".probe"
    for _ in range(2):
        with replacing(probe) as file:
            file.write(b"probe")
    probe.unlink()
