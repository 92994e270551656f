"""Which part of a forward pass matching and merging take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models.merging.layer import MergeLayer
from models.timing import synchronise


class Clock:
    """Runs forward passes in which every merge is timed. This makes them slower, so that they are timed by themselves.

    Args:
        model: the model.
        forward: runs its forward pass.
        device: the device that it runs on.

    Attributes:
        merging: milliseconds that matching and merging took in each pass.
        passes: milliseconds of each pass.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], object], device: torch.device) -> None:
        self._model, self._forward, self._device = model, forward, device
        self.merging: list[float] = []
        self.passes: list[float] = []

    def __call__(self) -> None:
        with _clocked(self._model, self._device) as spent:
            synchronise(self._device)
            start = time.perf_counter()
            self._forward()
            synchronise(self._device)
            self.passes.append(1e3 * (time.perf_counter() - start))
        self.merging.append(sum(spent))


@contextmanager
def _clocked(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Yields a list to which the milliseconds of each merge are appended while the context is active."""
    starts: list[float] = []
    spent: list[float] = []

    def before(*_: object) -> None:
        synchronise(device)
        starts.append(time.perf_counter())

    def after(*_: object) -> None:
        synchronise(device)
        spent.append(1e3 * (time.perf_counter() - starts.pop()))

    layers = [module for module in model.modules() if isinstance(module, MergeLayer)]
    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
