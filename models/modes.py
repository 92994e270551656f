"""The training mode of a model's modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
