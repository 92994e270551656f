"""Replaces a file atomically: after a crash it has either its old content or its new content, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, temporary: str = "") -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, for writing and reading, which replaces `path` when the block succeeds.

    The content reaches the disk before the name does, so that `path` is complete after kill -9 or a loss of power. The
    temporary name is always the same, so that a file left by a killed process is overwritten.

    Args:
        path: the file.
        temporary: the name of the temporary file; empty: that of `path` with ".tmp" behind it, hidden.

    Raises:
        OSError: the file cannot be written. After this and any error inside the block `path` is unchanged and the
            temporary file is removed.
    """
    part = path.with_name(temporary or f".{path.name}.tmp")
    try:
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    with suppress(OSError):  # not every file system can sync a folder; the file itself is already on disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
