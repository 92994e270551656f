"""Seals checkpoint files with a digest, because torch loads a file with a flipped bit without an error.

A zip archive may end with a comment; ours is the SHA-256 of everything before it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from models.settings import UserError

MARK = b"hybridmerge sha256 "
COMMENT = len(MARK) + 64  # bytes; the digest is in hexadecimal
END_RECORD = 22  # bytes of a zip archive's last record without its comment; its last two are the comment's length


def verify(path: Path) -> None:
    """Verifies the digest of a file written by `save`; another program's file has no digest and passes.

    Raises:
        UserError: the file is damaged.
    """
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - COMMENT))
        if file.read().startswith(MARK):
            check_seal(path, file)


def is_intact(path: Path) -> bool:
    """Returns whether a checkpoint's bytes match its digest."""
    try:
        verify(path)
    except (OSError, UserError):
        return False
    return True


def seal(file: BinaryIO) -> None:
    """Appends the digest to the archive in `file` as its comment."""
    end = file.seek(-END_RECORD, os.SEEK_END)
    assert file.read(4) == b"PK\x05\x06", "torch.save wrote no plain zip archive"
    file.seek(end + END_RECORD - 2)
    file.write(COMMENT.to_bytes(2, "little"))
    comment = MARK + _digest(file, end + END_RECORD)
    file.seek(0, os.SEEK_END)
    file.write(comment)


def check_seal(path: Path, file: BinaryIO) -> None:
    comment = comment_of(path, file)
    if comment != MARK + _digest(file, file.seek(0, os.SEEK_END) - COMMENT):
        raise UserError(f"{path}: damaged, its bytes do not match its SHA-256; use another checkpoint or a fresh copy")


def comment_of(path: Path, file: BinaryIO) -> bytes:
    """Returns the comment that `seal` appended; raises a UserError if there is none."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise UserError(f"{path}: empty; use another checkpoint of the run")
    file.seek(max(0, size - COMMENT))
    comment = file.read()
    if not comment.startswith(MARK):
        raise UserError(f"{path}: cut short, or not a checkpoint of this program; use another checkpoint of the run")
    return comment


def _digest(file: BinaryIO, size: int) -> bytes:
    """Returns the SHA-256 of the first `size` bytes, in hexadecimal, reading them in chunks."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        chunk = file.read(min(size, 1 << 20))
        if not chunk:
            break
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()
