"""Executes a plan on this machine: trains what is not done, evaluates the sweep, and writes the comparison."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from pathlib import Path

from engine.files import write_text_atomic, writing
from engine.launch.child import tool
from engine.runs.lock import LOCK, Lock, in_use, take_lock
from engine.settings.layers import to_yaml
from engine.study.execute.pool import Failure, Job, Wait, run_jobs
from engine.study.execute.progress import Progress, fraction_done
from engine.study.execute.sweeps import SWEEPS, check_sweep, entry_of, merges, sweep_job, sweep_size
from engine.study.execute.threads import threads_of
from engine.study.plan.cost import kind, work_of
from engine.study.plan.folders import RUNS, Placed, Placing, again, place
from engine.study.plan.index import write_index
from engine.study.plan.reading import PLAN_FILE, Plan
from engine.study.plan.rows import PlannedRun
from engine.tasks import title_of
from engine.wording import duration
from models.settings import UserError

LOGS, SETTINGS = "logs", "settings"  # in a study folder

log = logging.getLogger("hybridmerge")


class Study:
    """A study folder that this process works in.

    Args:
        plan: the plan.
        runs: what it means.

    Raises:
        UserError: the plan's sweep does not fit its runs.
    """

    def __init__(self, plan: Plan, runs: list[PlannedRun]) -> None:
        self.plan, self.runs, self.folder = plan, runs, plan.folder
        check_sweep(plan, runs)

    def open(self) -> Lock:
        """Creates the study folder, locks it, and writes the plan into it.

        Raises:
            UserError: another process works in it, or it holds files that are no study's.
        """
        check_room(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lock = stack.enter_context(take_lock(self.folder, resume=True))
            write_text_atomic(self.folder / PLAN_FILE, self.plan.record)
            with writing(self.folder):
                for name in (RUNS, LOGS, SETTINGS, SWEEPS):
                    (self.folder / name).mkdir(exist_ok=True)
            stack.pop_all()
        return lock

    def place(self) -> Placing:
        """Finds the runs' folders, and writes which row each belongs to into `runs.json`."""
        placing = place(self.runs, self.folder)
        entries = [entry_of(self.folder, placed) for placed in placing.runs]
        write_index(self.folder, entries)
        return placing

    def execute(self, placing: Placing) -> list[Failure]:
        """Trains what is not done and evaluates the sweep of what is.

        Returns:
            What failed.

        Raises:
            SystemExit: a signal stopped the study; all runs are saved.
        """
        source = _Queue(self, placing)
        progress = Progress(source.jobs, self.plan.settings.jobs)
        return run_jobs(source, self.plan.settings.jobs, progress, self.plan.command)

    def training(self, placed: Placed) -> Job:
        """Returns the job that trains a run, or continues it."""
        return training(self.folder, placed, self.plan.settings.jobs)

    def sweep(self, placed: Placed) -> Job | None:
        """Returns the job that evaluates the plan's sweep of a finished run; None if there is nothing to do."""
        plan = self.plan.settings
        return sweep_job(self.folder, placed, plan.sweep, plan.jobs) if plan.sweep else None


def check_room(folder: Path) -> None:
    """Checks that a folder is a study's, or free to become one.

    Raises:
        UserError: it holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the study another name= or out=")
    if not folder.is_dir() or (folder / PLAN_FILE).exists():
        return
    if any(entry.name != LOCK for entry in folder.iterdir()):
        raise UserError(f"{folder}: holds files, but no study ({PLAN_FILE}); give the study another name= or out=")


def training(study: Path, placed: Placed, jobs: int) -> Job:
    """Returns the job that trains a run of a study, or continues it.

    Args:
        study: the study folder.
        placed: the run.
        jobs: number of runs at a time, which share the processors.
    """
    command = training_command(study, placed)

    def ended() -> str:
        now = again(placed)
        if now.state != "done":
            raise UserError(now.problem or f"{placed.folder}: has no results")
        return f"{placed.run.title}: {result_line(now)}"

    return Job(
        title=placed.run.title,
        command=command,
        log=study / LOGS / f"{placed.run.title}.txt",
        ended=ended,
        kind=kind(placed.run),
        work=work_of(placed.run),
        fraction=lambda: fraction_done(placed.folder),
        environment=threads_of(placed.run.settings.threads, jobs),
    )


def training_command(study: Path, placed: Placed) -> list[str]:
    """Writes the settings of a run, and returns the command that trains it, or continues it.

    The settings are resolved, so that a config that is edited meanwhile changes no run.
    """
    settings = placed.run.settings.model_copy(update={"name": placed.top.path.name, "out": str(study / RUNS)})
    file = study / SETTINGS / f"{placed.run.title}.yaml"
    write_text_atomic(file, to_yaml(settings))
    resume = ["--resume"] if placed.folder.path.is_dir() else []
    return tool("train", "--cfg", str(file), *resume)


def result_line(placed: Placed) -> str:
    """Returns what a finished run came to, in a few words."""
    results = placed.folder.read_results()
    assert results is not None
    score = "no test images" if results.test_score is None else f"{100 * results.test_score:.2f} %"
    return f"{score} {title_of(results.metric)} in {duration(results.seconds)}"


class _Queue:
    """The jobs of a study: the runs that are not done, and behind each its sweep.

    Attributes:
        jobs: kind and work of all jobs that are left, sweeps of runs that are yet to be trained included.
    """

    def __init__(self, study: Study, placing: Placing) -> None:
        self.study = study
        self.waiting = deque(placed for placed in placing.runs if placed.state != "done")
        self.sweeping = deque(placed for placed in placing.runs if placed.state == "done")
        self.told: set[str] = set()
        self.jobs = [(kind(placed.run), work_of(placed.run)) for placed in self.waiting]
        left = [job for placed in self.sweeping if (job := study.sweep(placed)) is not None]
        coming = [placed for placed in self.waiting if study.plan.settings.sweep and merges(placed.run)]
        self.jobs += [(job.kind, job.work) for job in left] + [sweep_size(placed) for placed in coming]

    def __call__(self) -> Job | Wait | None:
        while self.sweeping:
            if (job := self.study.sweep(self.sweeping.popleft())) is not None:
                return job
        for _ in range(len(self.waiting)):
            placed = self.waiting.popleft()
            holder = in_use(placed.folder.path)
            if not holder:
                return self._training(placed)
            self.waiting.append(placed)
            if placed.run.title not in self.told:
                self.told.add(placed.run.title)
                print(f"{placed.run.title}: in use by {holder}; it is waited for", flush=True)
        return Wait() if self.waiting else None

    def _training(self, placed: Placed) -> Job:
        """Returns the job of a run; when it ends, its sweep is next."""
        job = self.study.training(again(placed))
        said = job.ended

        def ended() -> str:
            line = said()
            self.sweeping.append(placed)
            return line

        job.ended = ended
        return job
