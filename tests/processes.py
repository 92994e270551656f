"""The tools as real processes that begin at once: each is forked from a process that has imported their libraries.

Importing torch and what goes with it takes a tool some seconds, longer than what most tests then do with it. A process
made here runs the tool's file as a script, with its own working directory, environment, standard streams and exit code,
and can be signalled and killed like any other. So do the tools that a study starts: they are forked from the study.
What a fork cannot show is tested with `command` and `subprocess`: how Python starts (encodings, closed streams,
`nohup`), and signals while libraries are imported.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.paths import ROOT

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
IMPORTED = (  # what the tools import as they go
    "engine.cost.speed",
    "engine.measure.evaluate",
    "engine.study",
    "engine.study.execute.study",
    "engine.study.zeroshot",
    "engine.train.session",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch.distributed.fsdp",
    "torchvision.datasets",
    "torchvision.transforms.v2",
)


def command(tool: str, *args: str) -> list[str]:
    """The command line that starts a tool in a Python of its own."""
    return [sys.executable, str(ROOT / "tools" / tool), *args]


class Process:
    """A tool that was started; what it prints is kept in files, so that nobody needs to read it meanwhile.

    Args:
        tool: its file's name.
        args: what stands behind it on the command line.
        cwd: the folder in which it is started.
        environment: its variables.
        out: the file to which it prints, of which nothing is kept; None: one that is.

    Attributes:
        pid: the number of the process.
        returncode: the exit code, negative for a signal; None until `poll` or `wait` has seen the end.
    """

    def __init__(
        self, tool: str, *args: str, cwd: Path, environment: dict[str, str] = ENVIRONMENT, out: str | None = None
    ) -> None:
        self.returncode: int | None = None
        wanted = {"argv": [str(ROOT / "tools" / tool), *args], "cwd": str(cwd), "environment": environment}
        with ExitStack() as files:
            self._out = files.enter_context(tempfile.TemporaryFile("w+"))
            self._err = files.enter_context(tempfile.TemporaryFile("w+"))
            printed = files.enter_context(open(out, "w")) if out else self._out
            self._keeper = files.enter_context(_server().request(wanted, printed.fileno(), self._err.fileno()))
            self._files = files.pop_all()
        self.pid = int(self._keeper.recv(100))

    def poll(self) -> int | None:
        if self.returncode is None:
            with suppress(BlockingIOError):
                self.returncode = int(self._keeper.recv(100, socket.MSG_DONTWAIT))
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return self.returncode

    def printed(self) -> str:
        """What was printed on stdout so far."""
        return os.pread(self._out.fileno(), 2**20, 0).decode()  # the tool writes where the file's position is

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for the end; returns what was printed on stdout and on stderr."""
        self.wait(timeout)
        for file in (self._out, self._err):
            file.seek(0)
        return self._out.read(), self._err.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait(60)
        self._files.close()


def finish(tool: str, *args: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess:
    """Runs a tool to its end."""
    with Process(tool, *args, cwd=cwd) as process:
        out, err = process.communicate(timeout)
    return subprocess.CompletedProcess([tool, *args], process.returncode, out, err)


def said_by(call: Callable[[], None]) -> str:
    """What is printed by a fork of this process that calls, on stdout and stderr, and by all processes that it forks:
    it is read until none of them runs any more."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.close(read)
            os.close(write)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            call()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


class _Server:
    """The process that has imported everything. It ends when its socket is closed, at the latest with this process."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = [sys.executable, "-m", "tests.processes", str(theirs.fileno())]
        self._process = subprocess.Popen(
            code, cwd=ROOT, env=ENVIRONMENT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        atexit.register(self._end)

    def request(self, wanted: dict, out: int, err: int) -> socket.socket:
        """Starts a tool; returns where the process's number comes from and, when it has ended, its exit code."""
        keeper, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._ours, [json.dumps(wanted).encode()], [out, err, theirs.fileno()])
        return keeper

    def _end(self) -> None:
        self._ours.close()
        self._process.wait()


@cache
def _server() -> _Server:
    return _Server()


def _serve(server: socket.socket) -> None:
    """Forks a tool for each request."""
    gc.disable()  # looking for garbage takes a fifth of the time that imports take
    os.fsync = lambda descriptor: None  # as in conftest.py
    for module in IMPORTED:
        __import__(module)
    gc.collect()
    gc.enable()
    gc.freeze()  # so that the garbage collection of a fork does not write into, and so copy, all of its memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need nobody to wait for them
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 2**20, 3)
        if not message:
            os._exit(0)
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        server.close()
        out, err, report = descriptors
        if pid := os.fork():
            os.write(report, str(pid).encode())
            _, status = os.waitpid(pid, 0)
            os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        for descriptor in descriptors:
            os.close(descriptor)
        wanted = json.loads(message)
        os.chdir(wanted["cwd"])
        _start_forked(wanted["argv"], wanted["environment"])


def _start_forked(argv: list[str], environment: Mapping[str, str]) -> None:
    """Runs a script in this process, a fork, to the process's end."""
    from engine.launch import child

    child.subprocess = SimpleNamespace(Popen=_forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR is looked up again
    sys.argv = argv
    sys.path[0] = str(Path(argv[0]).parent)  # as where Python is started with a script
    runpy.run_path(argv[0], run_name="__main__")


def _forked(
    command: list[str], env: Mapping[str, str], preexec_fn: Callable[[], None], **options: Any
) -> subprocess.Popen:
    """subprocess.Popen of a Python script, which goes on from the fork instead of starting Python."""

    def run() -> None:
        preexec_fn()
        os.closerange(3, 1024)  # as a new program would; until then Popen waits
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gc.freeze()  # what has to do with the descriptors that were closed is never tidied up
        gc.enable()
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)  # without what the parent has yet to write
        code: object = 1
        try:
            _start_forked(command[1:], env)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

    return subprocess.Popen(command, env=env, preexec_fn=run, **options)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
