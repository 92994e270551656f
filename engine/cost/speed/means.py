"""Times several ways to compute the size-weighted mean of the tokens that merge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.cost.speed.merging import HEAD_DIM
from models.merging import MERGERS, Assignment, MergeContext, Tokens, apply_assignment
from models.timing import Times, timed

# x (B, T, C), size (B, T), index (B, T) into `count` tokens -> means (B, count, C)
Mean = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def by_rows(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    """Adds whole rows, as the models do."""
    return apply_assignment(x, Tokens(index, size), Assignment(index, count), prefix=0)[0]


def by_scatter(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    """Adds element by element along dimension 1, then divides."""
    total = size.new_zeros(size.shape[0], count).scatter_add(1, index, size)
    weighted = x.float() * size.unsqueeze(-1)
    sums = weighted.new_zeros(x.shape[0], count, x.shape[2])
    sums = sums.scatter_add(1, index.unsqueeze(-1).expand_as(x), weighted)
    return (sums / total.unsqueeze(-1)).to(x.dtype)


def by_one_hot(x: Tensor, size: Tensor, index: Tensor, count: int) -> Tensor:
    """Multiplies by the matrix that holds each token's share of its output token."""
    total = size.new_zeros(size.shape[0], count).scatter_add(1, index, size)
    share = (size / total.gather(1, index)).to(x.dtype)
    return x.new_zeros(x.shape[0], count, x.shape[1]).scatter(1, index.unsqueeze(1), share.unsqueeze(1)) @ x


MEANS: dict[str, Mean] = {"index_add of rows (ours)": by_rows, "scatter_add": by_scatter, "one-hot product": by_one_hot}


def mean_times(
    shape: tuple[int, int, int], r: int, dtype: torch.dtype, repeats: int, device: torch.device, *, train: bool
) -> Times:
    """Times each of MEANS on a merge by `tome`.

    Args:
        shape: (B, T, C) of the tokens.
        r: tokens that tome removes.
        dtype: precision of the tokens.
        repeats: timed calls of each.
        device: the device to compute on.
        train: time the forward and the backward pass; otherwise the forward pass alone.

    Returns:
        Milliseconds of each call.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(train)
    size = torch.randint(1, 5, shape[:2], generator=generator).float().to(device)
    metric = torch.randn(*shape[:2], HEAD_DIM, generator=generator).to(device)
    index, count, *_ = MERGERS["tome"].assign(metric, r, MergeContext(size))

    def call(mean: Mean) -> None:
        out = mean(x, size, index, count)
        if train:
            out.backward(torch.ones_like(out))

    return timed({name: lambda mean=mean: call(mean) for name, mean in MEANS.items()}, repeats, device)
