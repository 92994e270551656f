"""A run as a job of submitit. Its processes import no torch: they only start tools/train.py and wait."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine.launch.child import Child, reason
from models.settings import UserError

STOPPED = 143  # 128 + SIGTERM: how a run ends that was told to save


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


class SlurmRun:
    """A run as a job: calls tools/train.py, and has it save when the job's time is up or it is preempted.

    Where the job has several tasks, each is a process of the run, as under torchrun.

    Args:
        command: trains the run, or continues it with `--resume` behind.
        folder: the run folder.
        log: of the first process's output; the others' have their number at the end.
        threads: CPU threads; None: as the machine has it.
    """

    def __init__(self, command: list[str], folder: Path, log: Path, threads: int | None) -> None:
        self.command, self.folder, self.log, self.threads = command, folder, log, threads
        self.child: Child | None = None

    def __call__(self) -> None:
        """Trains to the end.

        Raises:
            RuntimeError: the run failed; the reason is its last error.
            SystemExit: this is not the first process, and the run was told to save: submitit starts the job again.
        """
        task = demand_submitit().JobEnvironment()
        resume = ["--resume"] if self.folder.is_dir() and "--resume" not in self.command else []
        log = self.log if not task.global_rank else self.log.with_suffix(f".{task.global_rank}{self.log.suffix}")
        self.child = Child([*self.command, *resume], log, self._environment(task))
        while (code := self.child.poll()) is None:
            time.sleep(0.2)
        if task.global_rank and code == STOPPED:
            raise SystemExit(0)
        if code:
            raise RuntimeError(reason(code, log))

    def checkpoint(self) -> Any:
        """Called by submitit in a signal's handler, in the first process: has the run save, and returns the job that
        continues it."""
        submitit = demand_submitit()
        if self.child is not None:
            self.child.stop()
            self.child.wait_in_handler()
        return submitit.helpers.DelayedSubmission(SlurmRun(self.command, self.folder, self.log, self.threads))

    def _environment(self, task: Any) -> dict[str, str]:
        """Returns the variables that tools/train.py gets: threads, and of several processes what torchrun would set."""
        found = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        if task.num_tasks == 1:
            return found
        from submitit.helpers import TorchDistributedEnvironment

        group = TorchDistributedEnvironment()
        found |= {"RANK": str(group.rank), "WORLD_SIZE": str(group.world_size), "LOCAL_RANK": str(group.local_rank)}
        found |= {"MASTER_ADDR": group.master_addr, "MASTER_PORT": str(group.master_port)}
        if "SLURM_CPUS_PER_TASK" not in os.environ:  # otherwise each has processors of its own, which it finds itself
            found["LOCAL_WORLD_SIZE"] = str(group.local_world_size)
            found.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        return found
