"""Times functions against each other, in rounds; all speed measurements use it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

Times = dict[str, list[float]]  # name -> milliseconds of each timed call
MOST_CALLS = 1000  # of a function in one round


def timed(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    warmup: int = 1,
    least_ms: float = 0.0,
) -> Times:
    """Times functions in rounds: each round times every function once.

    A machine that slows down thus slows all of them alike. The first rounds are a warm-up and are not timed.

    Args:
        calls: name -> function without arguments.
        repeats: timed rounds.
        device: on a CUDA device the time is that between two events around the call; elsewhere it is the clock's.
        warmup: rounds before them, at least 1.
        least_ms: a function that takes less than this is called several times in each round, as often in every one;
            the time is then the mean of these calls. 0: once.

    Returns:
        Milliseconds of each call, `repeats` for each name.
    """
    times: Times = {name: [] for name in calls}
    number = dict.fromkeys(calls, 1)  # of calls in a round
    for round_number in range(-warmup, repeats):
        for name, call in calls.items():
            taken = _stopped(call, number[name], device)
            if round_number >= 0:
                times[name].append(taken)
            elif round_number == -1 and taken < least_ms:
                number[name] = min(math.ceil(least_ms / max(taken, 1e-3)), MOST_CALLS)
    return times


def time_models(
    models: Mapping[str, nn.Module],
    images: Mapping[str, Tensor],
    repeats: int,
    device: torch.device,
    autocast: AbstractContextManager,
) -> Times:
    """Times the forward passes of several models against each other, in rounds, after two rounds to warm up.

    Args:
        models: name -> a model on `device`, in evaluation mode.
        images: name -> what that model is called with, (B, C, H, W), on `device`.
        repeats: timed rounds.
        device: the device.
        autocast: a context in which the models run, such as `engine.machine.pick_autocast` returns.

    Returns:
        Milliseconds of each pass, `repeats` for each name.
    """

    def forward(name: str) -> None:
        with torch.inference_mode(), autocast:
            models[name](images[name])

    calls = {name: partial(forward, name) for name in models}
    return timed(calls, repeats, device, warmup=2)


def _stopped(call: Callable[[], object], number: int, device: torch.device) -> float:
    """Returns the milliseconds of a call: the mean of `number` calls."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        stream = torch.cuda.current_stream(device)
        start.record(stream)
        for _ in range(number):
            call()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / number
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(number):
        call()
    synchronise(device)
    return 1e3 * (time.perf_counter() - begin) / number


def synchronise(device: torch.device) -> None:
    """Waits until a CUDA or MPS device has finished its work; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
