"""Runs a tool as a process of its own: its memory is freed at its end, and what kills it does not kill its caller."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.files import writing

TOOLS = Path(__file__).resolve().parents[2] / "tools"
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def tool(name: str, *arguments: str) -> list[str]:
    """Returns the command that starts a tool of this checkout: tool("train", "--cfg", FILE)."""
    return [sys.executable, str(TOOLS / f"{name}.py"), *arguments]


class Child:
    """A tool that is running. It has a process group of its own, so that Ctrl-C in the terminal reaches only the study.

    If the study is killed, Linux sends the tool SIGTERM; elsewhere it goes on to its end.

    Args:
        command: see `tool`.
        log: the file to which its output is added.
        environment: variables beside those of this process.

    Raises:
        UserError: the log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._before = _when_parent_dies()
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                    preexec_fn=self._before,
                )

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Waits for the end; returns the exit code."""
        return self._process.wait()

    def wait_in_handler(self) -> None:
        """Waits for the end inside a signal's handler, which may have interrupted `poll` or `wait`."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """Asks it to save and end; a second time, to end at once."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends it and its workers without saving."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _when_parent_dies():
    """Returns what a child calls as it starts: it gets SIGTERM if this process dies, and leaves to this process what
    Slurm sends to all processes of a job before its time is up. None where there is no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # looked up here: between fork and exec little is safe

    def before_exec() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before this call
            os._exit(128 + signal.SIGTERM)

    return before_exec


def reason(code: int, log: Path) -> str:
    """Returns why a tool failed: the last error that it printed, or the signal that ended it."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    if code < 0 or code > 128:
        name = signal.Signals(abs(code) % 128).name if abs(code) % 128 in iter(signal.Signals) else str(code)
        hint = "; was there too little memory?" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    last = (errors or lines or [f"exit code {code}, without a word"])[-1]
    return last.removeprefix("error: ")


def _tail(file: Path, most: int = 20_000) -> str:
    """Returns the end of a text file; "" if it cannot be read."""
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - most))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""
