"""Limits of the system that processes run into: shared memory, open files, the number of processes."""

from __future__ import annotations

import errno
import os
import resource

SHARED = "/dev/shm"  # where processes share memory on Linux
FILES = 12  # that each process opens for batches and images, at most
READERS = "the processes that read images"


def demand_files(count: int) -> None:
    """Raises the limit of open files where so many processes need more. One that may open none can hang.

    Raises:
        OSError: the system does not allow so many.
    """
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/dev/fd")) + 4 * count + FILES
    if most == resource.RLIM_INFINITY or needed <= most:
        return
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, limit))


def limit_in_words(error: OSError | RuntimeError) -> str | None:
    """Returns which limit an error of processes that read images is about, and what to do; None: another error."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "of ancdata" in text:
        return f"{READERS} need more open files than are allowed; use ulimit -n 4096, fewer of them, or data.workers=0"
    if number in (errno.EAGAIN, errno.ENOMEM):
        return f"{READERS} cannot all be started ({os.strerror(number).lower()}); use fewer of them, or data.workers=0"
    if number == errno.ENOSPC or "shared memory" in text:
        return (
            f"the batches of {READERS} do not fit into shared memory, {_room()}; use data.workers=0, fewer of them, a "
            "smaller train.batch_size, or more shared memory (docker run --shm-size=1g)"
        )
    if isinstance(error, RuntimeError):
        return None
    why = (error.strerror or text).lower()
    return f"{READERS} cannot be set up ({why}; are {SHARED} and TMPDIR right?); use data.workers=0"


def _room() -> str:
    """Returns how much shared memory there is."""
    try:
        disk = os.statvfs(SHARED)
    except OSError as error:
        return f"{SHARED} ({(error.strerror or str(error)).lower()})"
    total, free = (blocks * disk.f_frsize / 2**20 for blocks in (disk.f_blocks, disk.f_bavail))
    return f"{SHARED} ({total:.3g} MiB, {free:.3g} free)"
