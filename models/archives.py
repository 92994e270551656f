"""What files of arrays and tensors take in memory, known before any of it is unpacked, and how much memory there is.

A zip archive (.npz, .pth) of a few megabytes can unpack to any size, and an array's header can claim any shape.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Container
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
MAGIC = np.lib.format.MAGIC_PREFIX


def unpacked_size(path: Path) -> int:
    """Returns the bytes that all members of a zip archive have when unpacked; of any other file its size.

    No reader unpacks more of a member than the archive's directory says.
    """
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def array_sizes(path: Path, keys: Container[str] | None = None) -> dict[str, int]:
    """Returns the bytes that arrays of an .npz archive take, by their keys.

    Args:
        path: the archive.
        keys: of the arrays that are going to be read; None: all.

    Raises:
        ValueError: an array's header is not one, or claims more bytes than the archive has for the array.
        zipfile.BadZipFile: not an archive, or a damaged one.
    """
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            if keys is not None and key not in keys:
                continue
            with archive.open(member) as file:
                is_array = file.peek(len(MAGIC)).startswith(MAGIC)  # otherwise np.load returns its bytes
                claimed, held = _claimed(file) if is_array else 0, member.file_size - file.tell()
            if claimed > held:
                raise ValueError(f"{key}: has a header for {in_words(claimed)} and holds {in_words(held)}")
            sizes[key] = held
    return sizes


def _claimed(file: IO[bytes]) -> int:
    """Returns the bytes of the array whose header begins in `file`, which is read up to the header's end."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    return prod(shape) * dtype.itemsize if not dtype.hasobject else 0  # a pickle, which is not read


def memory_limit() -> int:
    """Returns the bytes of memory of the machine, or of this process's container if that has less."""
    machine, container = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _of_container()
    return machine if container is None else min(machine, container)


def available_memory() -> int:
    """Returns the bytes that this process can still take: of the machine, or of its container if that is less."""
    free = [memory_limit(), _field(MEMINFO, "MemAvailable:", 1024)]
    if (limit := _of_container()) is not None:
        free.append(limit - (_field(CGROUP / "memory.stat", "anon", 1) or 0))
    return max(min(number for number in free if number is not None), 0)


def _of_container() -> int | None:
    """Returns the bytes that a container may take; None if there is no container, or one without a limit ("max")."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str, unit: int) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name]), None)


def in_words(size: int) -> str:
    """Returns a number of bytes as text, such as "35 MB"."""
    for unit, name in ((1e18, "EB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
