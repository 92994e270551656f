"""Functions are called in rounds, as often as is said; how long they take is for benchmarks."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from models import timing
from models.timing import MOST_CALLS, time_models, timed

CPU = torch.device("cpu")


@pytest.mark.parametrize("warmup", [1, 3])
def test_rounds_are_interleaved_and_the_warm_up_is_not_timed(warmup):
    called = []
    times = timed({name: lambda name=name: called.append(name) for name in "abc"}, 4, CPU, warmup=warmup)
    assert "".join(called) == "abc" * (4 + warmup)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 4)


@pytest.fixture
def clock(monkeypatch):
    """The time in ms, which passes only where a test adds to it."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0] / 1000)
    return now


def test_what_is_short_is_called_several_times_in_a_round(clock):
    called = []

    def call(name, ms):
        called.append(name)
        clock[0] += ms

    calls = {"short": lambda: call("s", 3), "long": lambda: call("l", 30)}
    times = timed(calls, 2, CPU, least_ms=20)
    assert "".join(called) == "sl" + 2 * "sssssssl"  # 7 times 3 ms are at least 20
    assert times == {"short": [pytest.approx(3)] * 2, "long": [pytest.approx(30)] * 2}  # of one call each


def test_nothing_is_called_without_end(clock):
    called = []
    timed({"none": lambda: called.append(0)}, 1, CPU, least_ms=1e9)
    assert len(called) == 1 + MOST_CALLS


def test_models_are_timed_in_rounds_without_gradients():
    seen = []

    class Model(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.linear = name, nn.Linear(3, 2)

        def forward(self, images):
            logits = self.linear(images.mean((2, 3)))
            seen.append((self.name, images.shape[2], logits.requires_grad, logits.dtype))
            return logits

    images = {"a": torch.zeros(5, 3, 4, 4), "b": torch.zeros(5, 3, 2, 2)}
    times = time_models({"a": Model("a"), "b": Model("b")}, images, 3, CPU, nullcontext())
    assert seen == [("a", 4, False, torch.float32), ("b", 2, False, torch.float32)] * 5
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    time_models({"a": Model("a")}, images, 1, CPU, torch.autocast("cpu", torch.bfloat16))
    assert seen[-1][3] == torch.bfloat16
