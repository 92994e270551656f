"""Signals to stop: what they interrupt, and what they leave alone."""

from __future__ import annotations

import os
import signal
import time
from threading import Timer

import pytest

from engine.train.loop.signals import SIGNALS, Stopped, Stopping


def hung():
    yield 1
    yield 2
    time.sleep(30)
    yield 3


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_wait_at_once(number, tmp_path, capsys):
    taken, started = [], time.monotonic()
    with Stopping() as stopping:
        Timer(0.3, os.kill, (os.getpid(), number)).start()
        with pytest.raises(Stopped):
            taken.extend(stopping.waiting(hung()))
        with pytest.raises(SystemExit) as leaving:
            stopping.leave_if_asked(tmp_path)
    assert time.monotonic() - started < 10 and leaving.value.code == 128 + number
    assert f"tools/train.py --resume {tmp_path}" in capsys.readouterr().out


def test_a_signal_during_a_step_ends_the_next_wait_before_it_begins():
    taken = []
    with Stopping() as stopping, pytest.raises(Stopped):
        for item in stopping.waiting(hung()):
            os.kill(os.getpid(), signal.SIGTERM)
            taken.append(item)  # the step is completed
    assert taken == [1]


def test_the_second_signal_ends_the_program():
    with Stopping() as stopping, pytest.raises(SystemExit, match="143"):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.asked and list(stopping.waiting([1, 2])) == [1, 2]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
