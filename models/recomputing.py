"""Activation checkpointing: blocks compute again, in the backward pass, what they computed in the forward pass.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost. 2016. Of each block only the input is kept
for the backward pass, which then takes one more forward pass of each block. The result is the same: dropout draws the
same numbers again, autocast is as it was, a block that merges gets the same tokens with the same number to remove, and
BatchNorm's running statistics move once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .merging.wrapping import MergingBlocks
from .repeated import repeated
from .settings import UserError


def recompute_blocks(model: nn.Module) -> None:
    """Has the blocks of a model keep no activations, in place; parameters and their names stay as they are.

    Args:
        model: any model. If it is wrapped for merging, that was done before.

    Raises:
        UserError: it has no blocks, see `repeated`.
    """
    blocks = repeated(model)
    if not blocks:
        raise UserError(
            f"train.checkpoint_activations = true: {type(model).__name__} has no blocks that repeat; set it to false"
        )
    containers = [module for module in model.modules() if isinstance(module, MergingBlocks)]
    called = {container.get_submodule(name) for container in containers for name in container.names}
    for container in containers:  # it calls its blocks' equations, not the blocks
        container.around = recomputed
    for block in blocks:
        if block not in called:
            block.forward = partial(recomputed, block, block.forward)


def recomputed(block: nn.Module, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Runs a block so that nothing but its input is kept for the backward pass.

    Args:
        block: the block.
        run: what computes it.
        args, options: of `run`. torch's backward pass raises a RuntimeError if one of the tensors was changed in place.
    """
    if not torch.is_grad_enabled():
        return run(*args, **options)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **options)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """A context in which BatchNorm's running statistics are copies, which are forgotten at its end."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    try:
        for norm, buffers in zip(norms, kept, strict=True):
            copies = {name: None if value is None else value.clone() for name, value in buffers.items()}
            norm._buffers.update(copies)
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
