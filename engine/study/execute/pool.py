"""Keeps a number of processes running until there is nothing left to do, or a signal asks to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.launch.child import Child, reason
from engine.study.execute.progress import Progress
from engine.study.execute.stopping import Asked
from models.settings import UserError

PAUSE = 0.1  # seconds between two looks at the processes


@dataclass
class Job:
    """A process that a study runs.

    Attributes:
        title: what lines and the bar call it.
        command: see `engine.launch.child.tool`.
        log: the file of its output.
        ended: called when it has ended without an error; returns the line to print. It raises a UserError if what the
            process was to leave behind is not there.
        kind: equal for jobs that take equally long.
        work: how much there is to do, in any unit that is the same for all jobs.
        fraction: returns how much of it is done, from 0 to 1.
        unwanted: asked while it runs: whether to stop it early. It is then saved, and `ended` is called.
        failed: called when it failed.
        environment: variables for the process.
    """

    title: str
    command: list[str]
    log: Path
    ended: Callable[[], str]
    kind: str = ""
    work: float = 1.0
    fraction: Callable[[], float] = lambda: 0.0
    unwanted: Callable[[], bool] = lambda: False
    failed: Callable[[], object] = lambda: None
    environment: dict[str, str] | None = None


@dataclass(frozen=True)
class Failure:
    """A job that failed: its title, its log, and the last error."""

    title: str
    log: Path
    error: str


class Wait:
    """What a source of jobs returns if there will be another job, but not now."""


Source = Callable[[], "Job | Wait | None"]  # the next job; None: there is none left


def run_jobs(source: Source, slots: int, progress: Progress, command: str) -> list[Failure]:
    """Runs the jobs of a source, and returns those that failed.

    Args:
        source: gives the next job.
        slots: how many run at a time.
        progress: of all jobs; it is closed at the end.
        command: what continues them, for the line after a signal.

    Raises:
        SystemExit: a signal stopped them; all runs are saved.
    """
    pool = Pool(source, slots, progress)
    try:
        number = pool.run()
    finally:
        progress.close()
    if number:
        print(f"stopped; continue with: {command}", flush=True)
        raise SystemExit(128 + number)
    return pool.failures


class Pool:
    """Runs the jobs of a source.

    Args:
        source: gives the next job.
        slots: how many run at a time.
        progress: of the study.
    """

    def __init__(self, source: Source, slots: int, progress: Progress) -> None:
        self.source, self.slots, self.progress = source, slots, progress
        self.active: list[tuple[Job, Child]] = []
        self._begun: dict[int, float] = {}  # when a job began, by id
        self.failures: list[Failure] = []
        self._stopped: set[int] = set()  # jobs that were unwanted, by id

    def run(self) -> int:
        """Runs until no job is left. A job that fails is recorded, and the others go on.

        Returns:
            The signal that stopped it, after all processes have saved and ended; 0: it came to its end.
        """
        with Asked() as asked:
            told = 0
            try:
                while True:
                    self._reap(stopping=bool(asked.number))
                    exhausted = bool(asked.number) or self._start()
                    if not self.active and exhausted:
                        return asked.number
                    if asked.times > told:
                        told = asked.times
                        self._tell(told)
                    time.sleep(PAUSE)
                    self._look()
            finally:
                for _, child in self.active:  # an error of our own
                    child.stop()
                for _, child in self.active:
                    child.wait()

    def _start(self) -> bool:
        """Fills the free slots; returns whether there is no job left."""
        while len(self.active) < self.slots:
            job = self.source()
            if job is None:
                return True
            if isinstance(job, Wait):
                return False
            self._begun[id(job)] = time.monotonic()
            self.active.append((job, Child(job.command, job.log, job.environment)))
        return False

    def _tell(self, times: int) -> None:
        """Passes on the signals to stop: the first lets the processes save, the second does not, the third kills."""
        if self.active and times == 1:
            self.progress.line(f"stopping: {', '.join(job.title for job, _ in self.active)} will be saved")
        for _, child in self.active:
            child.kill() if times > 2 else child.stop()

    def _reap(self, *, stopping: bool) -> None:
        """Takes note of the processes that have ended."""
        for job, child in list(self.active):
            code = child.poll()
            if code is None:
                continue
            self.active.remove((job, child))
            if code and id(job) not in self._stopped:
                if not stopping or code == 2:
                    self._fail(job, reason(code, job.log))
                continue
            try:
                line = job.ended()
                self.progress.ended((job.kind, job.work), time.monotonic() - self._begun[id(job)], line)
            except UserError as error:
                self._fail(job, str(error))

    def _fail(self, job: Job, error: str) -> None:
        job.failed()
        self.failures.append(Failure(job.title, job.log, error))
        self.progress.ended((job.kind, job.work), 0.0, f"{job.title}: failed: {error}", failed=True)

    def _look(self) -> None:
        """Stops jobs that are unwanted, and updates the bar."""
        for job, child in self.active:
            if id(job) not in self._stopped and job.unwanted():
                self._stopped.add(id(job))
                child.stop()
        self.progress.update([(job.title, job.fraction()) for job, _ in self.active])
