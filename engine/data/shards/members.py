"""The members of a tar file, read one by one at their offsets: a shard is then as good as a folder of files.

The path of a member is that of the tar file with the member's name behind it, train-000000.tar/0000012-cat.jpg.
"""

from __future__ import annotations

import io
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

SUFFIX = ".tar"  # compressed tar files have no offsets
BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """Where the content of a member lies."""

    offset: int  # bytes from the beginning of the tar file
    size: int  # bytes


class Shard(NamedTuple):
    """What a tar file holds.

    Attributes:
        members: its files by name, in their order; of a damaged one those before the damage.
        problem: what is wrong with it; "" if nothing is.
    """

    members: dict[str, Member]
    problem: str


def read_shard(path: Path) -> Shard:
    """Returns the members of a tar file by their headers; their contents are not read.

    A file is read once by a process, and again if it has changed.

    Raises:
        OSError: it cannot be opened.
    """
    facts = os.stat(path)
    return _read_shard(path, facts.st_size, facts.st_mtime_ns)


@cache
def _read_shard(path: Path, size: int, _: int) -> Shard:
    members: dict[str, Member] = {}
    if not size:
        return Shard(members, "empty file")
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # it would keep all of them
                    if info.isreg():
                        name = os.path.normpath(info.name).lstrip(os.sep)  # tar -P keeps the one in front
                        if name in members:
                            return Shard(members, f"has two members {name!r}")
                        members[name] = Member(info.offset_data, info.size)
                end = tar.offset
        except tarfile.TarError as error:
            return Shard(members, _cut_off(members, size) or f"not a tar file, or damaged ({error})")
    # Two blocks of zeros end a tar file, of which the reader has consumed the first.
    return Shard(members, _cut_off(members, size) or ("" if end + BLOCK <= size else "cut off: it has no end mark"))


def _cut_off(members: dict[str, Member], size: int) -> str:
    """Returns what is wrong with a tar file that is shorter than its last member needs; "" if it is not."""
    last = next(reversed(members), None)
    if last is None or members[last].offset + members[last].size <= size:
        return ""
    return f"cut off in member {last!r}: {size:,} bytes of at least {members.pop(last).offset + BLOCK:,}"


def open_member(path: Path) -> BinaryIO:
    """Opens a member of a tar file by its path.

    Raises:
        FileNotFoundError: there is no such tar file or member.
        ValueError: the file has become shorter.
    """
    for shard in path.parents:
        if shard.suffix == SUFFIX and shard.is_file():
            member = read_shard(shard).members.get(str(path.relative_to(shard)))
            if member is not None:
                return io.BytesIO(read_member(shard, member))
    raise FileNotFoundError(2, "No such member", str(path))


def read_member(shard: Path, member: Member) -> bytes:
    """Returns the content of a member.

    Raises:
        OSError: the tar file cannot be read.
        ValueError: it has become shorter.
    """
    with open(shard, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), member.size, member.offset)
    if len(content) < member.size:
        raise ValueError(f"the shard ends after {len(content)} of {member.size} bytes")
    return content
