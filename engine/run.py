"""The run folder: one process at a time works in it, and each file in it is whole, old or new, after any crash."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from models.settings import UserError

LOCK = ".lock"
RESULTS = "results.json"
# What training writes into a run folder, or into that of all folds.
FILES = {"settings.yaml", RESULTS, "folds.json", "metrics.jsonl", "predictions.csv", "confusion.png", "confused.png",
         "best.pt", "last.pt", "log.txt"}  # fmt: skip

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


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8; after a crash or an error `path` holds the old text or the new, never a part.

    Raises:
        UserError: the disk is full, or the folder is read-only or gone.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode())


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, like `write_text_atomic`; nan and inf become null."""
    write_text_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def read_results(folder: Path) -> dict[str, Any] | None:
    """What a run's `results.json` holds; None where the run has not come to its end.

    Raises:
        UserError: it is damaged.
    """
    file = folder / RESULTS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: cannot be read; delete it and test the run again with --resume {folder}")
    return found


def finite(value: Any) -> Any:
    """`value` with each nan and inf in it, which JSON cannot say, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def demand_writable(option: str, path: Path, example: str) -> None:
    """Refuses a file that could not be written later, when there is something to write.

    Args:
        option: of the command line, for the error.
        path: the file.
        example: a name for one, where `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; give a file in it, such as {path / example}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; make it")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{option} {path}: may not be written; make it and its folder writable, or give another")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside `path`, for writing and reading, that takes the place of `path` when the block ends well.

    The bytes reach the disk before the name does, so that `path` is whole after kill -9 or a loss of power. The
    temporary name is always the same: what a killed process left is overwritten, not collected.

    Raises:
        UserError: an OSError inside the block or here; `path` is as before and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a UserError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written, {_explain(error)}") from error


def _explain(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{reason}; free some space, or write to another disk (out= of a run)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}; make the folder writable, or write to another (out= of a run)"
    if error.errno == errno.ENOENT:
        return f"{reason}; its folder is not there, or no longer; make it, or write to another"
    return f"{reason}; write to another folder (out= of a run)"


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


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every file system can; the file itself is safe by now
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
