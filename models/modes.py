"""Modes in which models run: their modules' training mode, and without autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and gives every module its own mode back at the end.

    `model.train(model.training)` would do so only for a model whose modules are all in the same mode, which is not so
    where a part is frozen.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def without_autocast(device: str) -> AbstractContextManager[None]:
    """A context in which no autocast is active. Where none is, it does nothing: to enter torch.autocast takes time."""
    active = device != "meta" and torch.is_autocast_enabled(device)  # of meta tensors torch refuses to say
    return torch.autocast(device, enabled=False) if active else nullcontext()
