"""Shows how far a study has come: a bar with the time left on a terminal, and a line for each run that ends."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import step_of
from engine.wording import duration

EVERY = 1.0  # seconds between two updates of the bar
START = 10.0  # seconds that a process takes to import torch and load its data, where nothing else is known
TOTAL = re.compile(r"from step \d+ of (\d+)$", re.MULTILINE)  # in a run's log, see engine.train.describe


class Progress:
    """Progress of the jobs of a study.

    The time left follows from the jobs of this session: those of a kind take as long as the others of this kind, and
    of a new kind as their share of the work says. It is not known before the first job has ended.

    Args:
        jobs: kind and work, in any unit, of each job that is left; None: it is not known how many there are.
        slots: how many run at a time.
    """

    def __init__(self, jobs: Sequence[tuple[str, float]] | None, slots: int) -> None:
        self.left = None if jobs is None else list(jobs)
        self.count = None if jobs is None else len(jobs)
        self.slots = slots
        self.seconds: dict[str, list[float]] = {}  # of jobs that have ended, by kind
        self.slope: list[tuple[float, float]] = []  # seconds without the start, and work, of jobs that have ended
        self.jobs = self.failed = 0
        self._seen = time.monotonic()
        # A bar only on a terminal (disable=None); elsewhere the lines are all there is.
        form = "{percentage:3.0f} %|{bar}| {postfix}"
        self._bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True, disable=None, leave=False)

    def update(self, active: Sequence[tuple[str, float]]) -> None:
        """Updates the bar at most once a second.

        Args:
            active: title, and the fraction that is done, of each job that is running.
        """
        if self._bar.disable or time.monotonic() - self._seen < EVERY:
            return
        self._seen = time.monotonic()
        done = self.jobs + self.failed + sum(fraction for _, fraction in active)
        self._bar.n = min(1.0, done / self.count) if self.count else 0.0
        names = ", ".join(f"{title} {100 * fraction:.0f} %" for title, fraction in active[:2])
        more = ", ..." if len(active) > 2 else ""
        self._bar.set_postfix_str(f"{self._counts()}{self._time_left()}: {names}{more}")

    def ended(self, job: tuple[str, float], seconds: float, line: str, *, failed: bool = False) -> None:
        """Takes note of a job that ended after some seconds, and prints a line about it.

        Args:
            job: its kind and its work.
            seconds: that it took in this session.
            line: what it came to.
            failed: whether it failed; its time says nothing then.
        """
        if self.left is not None and job in self.left:
            self.left.remove(job)
        self.jobs += not failed
        self.failed += failed
        if not failed:
            self.seconds.setdefault(job[0], []).append(seconds)
            self.slope.append((max(seconds - START, 0.5), job[1]))
        self.line(f"[{self._counts()}] {line}{self._time_left()}")

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def seconds_left(self) -> float | None:
        """Returns how long the jobs take that have not ended; None if nothing is known yet.

        A job of a new kind with more than ten times the work of all that have ended is not guessed at.
        """
        if not self.left or not self.slope:
            return None
        largest = max(work for _, work in self.slope)
        if any(kind not in self.seconds and work > 10 * largest for kind, work in self.left):
            return None
        slope = sum(seconds for seconds, _ in self.slope) / (sum(work for _, work in self.slope) or 1.0)
        known = {kind: mean(seconds) for kind, seconds in self.seconds.items()}
        seconds = sum(known.get(kind, START + slope * work) for kind, work in self.left)
        return seconds / min(self.slots, len(self.left))

    def _counts(self) -> str:
        of = "" if self.count is None else f"/{self.count}"
        return f"{self.jobs}{of}" + (f", {self.failed} failed" if self.failed else "")

    def _time_left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f", about {duration(seconds)} left"


def fraction_done(run: RunFolder) -> float:
    """Returns how much of a run's training is done, from 0 to 1, by its log and its metrics; 0 if they do not say."""
    try:
        totals = TOTAL.findall(_end(run.log_file, 200_000))
        lines = _end(run.metrics_file, 4_000).splitlines()
    except OSError:
        return 0.0
    steps = [step for step in map(step_of, lines) if step != float("inf")]
    return min(1.0, steps[-1] / int(totals[-1])) if totals and steps and int(totals[-1]) else 0.0


def _end(file: Path, most: int) -> str:
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - most))
        return opened.read().decode(errors="replace")
