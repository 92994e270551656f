"""Writes files atomically: after a crash a file has either its old content or its new content, never a part of it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import models.files
from models.settings import UserError


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically.

    Raises:
        UserError: the disk is full, or the folder is read-only or gone.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode())


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON, atomically; nan and inf become null."""
    write_text_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Returns `value` with every nan and inf in it replaced by None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def demand_writable(option: str, path: Path, example: str) -> None:
    """Checks that a file can be written, before starting the work whose result it will hold.

    Args:
        option: the command-line option that names the file, for the error.
        path: the file.
        example: a file name that the error suggests if `path` is a folder.

    Raises:
        UserError: `path` is a folder, or it or its folder cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; give a file in it, such as {path / example}")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}; create it")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{option} {path}: not writable; make it and its folder writable, or give another")


@contextmanager
def replacing(path: Path, temporary: str = "") -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` which replaces `path` when the block succeeds; see `models.files.replacing`.

    Raises:
        UserError: an OSError inside the block or here; `path` is unchanged and the temporary file is removed.
    """
    with writing(path), models.files.replacing(path, temporary) as file:
        yield file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a UserError that names `path`, the reason and the fix."""
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
        return f"{reason}; its folder does not exist, or no longer does; create it, or write to another"
    return f"{reason}; write to another folder (out= of a run)"
