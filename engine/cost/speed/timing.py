"""Times functions against each other, in rounds; all speed measurements use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Times = dict[str, list[float]]  # name -> milliseconds of each timed call


def timed(calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> Times:
    """Times functions in rounds: each round calls every function once.

    A machine that slows down thus slows all of them alike. The first round is a warm-up and is not timed.

    Args:
        calls: name -> function without arguments.
        repeats: timed rounds.
        device: a CUDA device is synchronised before and after each call.

    Returns:
        Milliseconds of each call, `repeats` for each name.
    """
    times: Times = {name: [] for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            if round_number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def synchronise(device: torch.device) -> None:
    """Waits until a CUDA device has finished its work; does nothing for other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
