"""A run as a job of submitit. Its process imports no torch: it only starts tools/train.py and waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.study.execute.child import Child, reason
from models.settings import UserError


def demand_submitit() -> Any:
    """Returns the module submitit.

    Raises:
        UserError: it is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm: needs submitit; pip install -e '.[slurm]'") from None
    return submitit


class ClusterRun:
    """A run as a job: calls tools/train.py, and has it save when the job's time is up or it is preempted.

    Args:
        command: trains the run, or continues it with `--resume` behind.
        folder: the run folder.
        log: of its output.
        threads: CPU threads; None: as the machine has it.
    """

    def __init__(self, command: list[str], folder: Path, log: Path, threads: int | None) -> None:
        self.command, self.folder, self.log, self.threads = command, folder, log, threads
        self.child: Child | None = None

    def __call__(self) -> None:
        """Trains to the end.

        Raises:
            RuntimeError: the run failed; the reason is its last error.
        """
        resume = ["--resume"] if self.folder.is_dir() and "--resume" not in self.command else []
        environment = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else None
        self.child = Child([*self.command, *resume], self.log, environment)
        while (code := self.child.poll()) is None:
            time.sleep(0.2)
        if code:
            raise RuntimeError(reason(code, self.log))

    def checkpoint(self) -> Any:
        """Called by submitit in a signal's handler: has the run save, and returns the job that continues it."""
        submitit = demand_submitit()
        if self.child is not None:
            self.child.stop()
            self.child.wait_in_handler()
        return submitit.helpers.DelayedSubmission(ClusterRun(self.command, self.folder, self.log, self.threads))
