"""How many CPU threads each of several processes has."""

from __future__ import annotations

import os

from engine.data.loading.workers import processors

THREADS = "OMP_NUM_THREADS"


def threads_of(settings: int | None, jobs: int) -> dict[str, str]:
    """Returns the variable that says how many CPU threads a process has; {}: as many as it finds processors.

    Without it, each of several processes would start as many threads as there are processors, and all would wait.

    Args:
        settings: the setting `threads` of a run.
        jobs: number of processes at a time.
    """
    if settings is None and (jobs == 1 or THREADS in os.environ):
        return {}
    return {THREADS: str(settings or max(1, processors() // jobs))}
