"""The pool of processes: order, failures, signals. The processes are real and do next to nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque

import pytest

from engine.launch.child import Child, reason
from engine.study.execute import pool as pool_module
from engine.study.execute.pool import Job, Pool, Wait
from engine.study.execute.progress import START, Progress
from engine.study.execute.threads import threads_of
from models.settings import UserError
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    """The end of a process is seen at once."""
    monkeypatch.setattr(pool_module, "PAUSE", 0.01)


def job(folder, title: str, code: str, ended=None, **options) -> Job:
    return Job(title, [sys.executable, "-c", code], folder / f"{title}.txt", ended or (lambda: title), **options)


def pool_of(jobs: list, slots: int = 1) -> Pool:
    waiting = deque(jobs)
    return Pool(lambda: waiting.popleft() if waiting else None, slots, Progress([("", 1.0)] * len(jobs), slots))


def test_a_failed_job_is_named_and_the_others_go_on(tmp_path, capsys):
    def nothing_there() -> str:
        raise UserError("no results")

    jobs = [
        job(tmp_path, "good", "print('hello')"),
        job(tmp_path, "wrong", "import sys; print('error: train.lr = 1: too large', file=sys.stderr); sys.exit(2)"),
        job(tmp_path, "broken", "x = {}\nx['key']"),
        job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
        job(tmp_path, "empty", "", nothing_there),
        job(tmp_path, "last", "pass"),
    ]
    pool = pool_of(jobs)
    assert pool.run() == 0
    assert [(failure.title, failure.error) for failure in pool.failures] == [
        ("wrong", "train.lr = 1: too large"),
        ("broken", "KeyError: 'key'"),
        ("killed", "ended by SIGKILL; was there too little memory?"),
        ("empty", "no results"),
    ]
    said = capsys.readouterr().out
    assert "[2/6, 4 failed] last" in said and (tmp_path / "good.txt").read_text() == "hello\n"


def test_jobs_run_at_the_same_time(tmp_path):
    """Each waits for the file of the other."""
    code = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    pool = pool_of([job(tmp_path, "a", code.format(one, two)), job(tmp_path, "b", code.format(two, one))], slots=2)
    assert pool.run() == 0 and not pool.failures


def test_a_source_may_have_nothing_yet(tmp_path):
    answers = deque([Wait(), job(tmp_path, "a", "pass"), Wait(), job(tmp_path, "b", "pass"), None])
    pool = Pool(lambda: answers.popleft() if len(answers) > 1 else None, 1, Progress(None, 1))
    assert pool.run() == 0 and pool.progress.jobs == 2


SAVES = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.3)  # a save takes a while
    pathlib.Path({saved!r}).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({ready!r}).touch()
time.sleep(60)
"""


def saving(folder, title: str) -> str:
    return SAVES.format(saved=str(folder / f"{title}.saved"), ready=str(folder / f"{title}.ready"))


def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_signal_lets_all_save_and_starts_nothing_more(tmp_path):
    jobs = [job(tmp_path, name, saving(tmp_path, name)) for name in ("a", "b", "c")]
    ready = [tmp_path / "a.ready", tmp_path / "b.ready"]
    told = []

    def fraction() -> float:
        return 0.0

    pool = pool_of(jobs, slots=2)
    look = pool._look

    def looking() -> None:
        look()
        if not told and all(path.exists() for path in ready):
            told.append(os.kill(os.getpid(), signal.SIGINT))

    pool._look = looking
    assert pool.run() == signal.SIGINT
    assert (tmp_path / "a.saved").exists() and (tmp_path / "b.saved").exists()
    assert not (tmp_path / "c.ready").exists() and not pool.failures
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unwanted_job_is_stopped_and_is_no_failure(tmp_path):
    ready = tmp_path / "a.ready"
    pool = pool_of([job(tmp_path, "a", saving(tmp_path, "a"), unwanted=ready.exists), job(tmp_path, "b", "pass")])
    assert pool.run() == 0 and not pool.failures and pool.progress.jobs == 2
    assert (tmp_path / "a.saved").exists()


def test_a_child_saves_when_its_parent_is_killed(tmp_path):
    """kill -9 of the study leaves no process that goes on training; Linux only."""
    code = f"""
import sys, time
from pathlib import Path
from engine.launch.child import Child
Child([sys.executable, "-c", {saving(tmp_path, "a")!r}], Path({str(tmp_path / "log.txt")!r}))
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        until((tmp_path / "a.ready").exists)
        parent.kill()
    if sys.platform.startswith("linux"):
        until((tmp_path / "a.saved").exists)


def test_why_a_tool_failed(tmp_path):
    file = tmp_path / "log.txt"
    assert reason(1, file) == "exit code 1, without a word"
    file.write_text("starting\nerror: data.path: missing\n\n")
    assert reason(2, file) == "data.path: missing"
    assert reason(143, file) == "ended by SIGTERM" and reason(-15, file) == "ended by SIGTERM"
    file.write_text("RuntimeError: CUDA error\nFor debugging consider\n")
    assert reason(1, file) == "RuntimeError: CUDA error"
    file.write_text("error: of the session before\ntorch.OutOfMemoryError: CUDA out of memory\n")
    assert reason(1, file) == "torch.OutOfMemoryError: CUDA out of memory"


def test_the_time_left_goes_by_jobs_of_the_same_kind(capsys):
    progress = Progress([("vit", 10.0), ("vit", 10.0), ("hybrid", 40.0), ("hybrid", 40.0)], slots=1)
    assert progress.seconds_left() is None
    progress.ended(("vit", 10.0), START + 100, "a")
    assert progress.seconds_left() == (START + 100) + 2 * (START + 400)
    progress.ended(("hybrid", 40.0), 70.0, "b")
    assert progress.seconds_left() == (START + 100) + 70
    progress.ended(("hybrid", 40.0), 0.0, "c: failed", failed=True)
    progress.ended(("vit", 10.0), 1.0, "d")
    assert progress.seconds_left() is None and progress.failed == 1
    assert "[3/4, 1 failed] d\n" in capsys.readouterr().out


def test_the_time_of_much_larger_jobs_is_not_guessed():
    progress = Progress([("lenet5", 0.01), ("vit", 10.0)], slots=1)
    progress.ended(("lenet5", 0.01), START + 1, "a")
    assert progress.seconds_left() is None


def test_the_last_job_has_no_other_to_share_its_time_with():
    progress = Progress([("vit", 10.0)] * 5, slots=4)
    progress.ended(("vit", 10.0), 100.0, "a")
    assert progress.seconds_left() == 100
    for title in "bcd":
        progress.ended(("vit", 10.0), 100.0, title)
    assert progress.seconds_left() == 100


def test_jobs_at_a_time_share_the_processors(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("engine.study.execute.threads.processors", lambda: 8)
    shares = [threads_of(*case).get("OMP_NUM_THREADS") for case in ((None, 1), (None, 3), (None, 99), (6, 1), (6, 4))]
    assert shares == [None, "2", "1", "6", "6"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own
    assert threads_of(None, 4) == {}


def test_children_are_out_of_reach_of_the_terminal(tmp_path):
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log.txt")
    try:
        assert os.getpgid(child._process.pid) != os.getpgid(0)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
