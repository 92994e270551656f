"""Locks a run folder, so that only one process at a time works in it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

from engine.files import replacing, writing
from models.settings import UserError

LOCK = ".lock"  # the lock file; a folder that holds nothing else counts as empty

log = logging.getLogger("hybridmerge")


class Lock:
    """A run folder held by this process until `close`, the end of a `with` block, or the end of the process.

    The kernel releases the lock when the process ends, so that kill -9 leaves nothing to clean up.

    Args:
        descriptor: file descriptor of the locked file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Releases the folder; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_lock(path: Path, *, resume: bool) -> Lock:
    """Creates the run folder `path` if it is missing, and locks it for this process.

    Args:
        path: the run folder.
        resume: whether to continue a run there; otherwise the folder must be empty or new.

    Raises:
        UserError: another process has locked the folder; it contains files and `resume` is False; it does not exist and
            `resume` is True; or files cannot be created, replaced and deleted in it.
    """
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
    return Lock(lock)


def in_use(path: Path) -> str:
    """Returns which process has locked a run folder, such as "process 12 on host"; "" if none has."""
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return ""  # it has never been locked, or cannot be
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(lock)
    except OSError:
        return ""
    finally:
        os.close(lock)
    return ""


def _holder(lock: int) -> str:
    return os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"


def _lock(path: Path) -> int:
    """Locks the lock file and writes the process and the host into it; returns its file descriptor."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(lock)
        os.close(lock)
        raise UserError(f"{path}: in use by {holder}; wait for it or stop it, or use another name=") from None
    except OSError as error:  # some network file systems have no locks
        log.warning("%s: cannot be locked (%s); start no second run in it", path, error.strerror)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return lock


def _check_empty(path: Path) -> None:
    if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        raise UserError(f"{path}: holds files already; continue that run with --resume, or use another name= or out=")


def _check_writable(path: Path) -> None:
    """Creates, replaces and deletes a file, as saving checkpoints will: better to fail now than after an epoch."""
    probe = path / ".probe"
    for _ in range(2):
        with replacing(probe) as file:
            file.write(b"probe")
    probe.unlink()
