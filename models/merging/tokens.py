"""The state of merged tokens, and the two operations on it: merge and unmerge.

Merging is an assignment. A method answers with one integer per token, the index of the output token that it joins;
means, sizes, maps and pictures all follow from that integer.

Shapes: B images, P prefix tokens (class token), N patches, T tokens now (prefix included), C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Assignment, Grid, MergeContext, Merger


class Soft(NamedTuple):
    """A soft state, which a method in training may leave (dtem.py): input tokens are divided among tokens."""

    share: Tensor  # (B, P + N, T) float32: how much of each input token is in each token; rows sum to one
    active: int  # how many tokens, from the first, still take part in merging


class Tokens(NamedTuple):
    """What became of the input tokens. Travels through the network beside `x`, as a value.

    In a soft state `index` names the token with the largest share, and `size` is the shares' sum over the input tokens.
    """

    index: Tensor  # (B, P + N) int64: the token that each input token is now part of
    size: Tensor  # (B, T) float32: how many input tokens each token stands for; bincount(index), if none was dropped
    grid: Grid | None = None  # rows and columns of the T - P patches, as long as they are a grid in row order
    soft: Soft | None = None

    @property
    def merged(self) -> bool:
        """Whether any token was merged so far. Static: it is a matter of shapes."""
        return self.soft is not None or self.size.shape[1] < self.index.shape[1]


def initial_tokens(x: Tensor, grid: Grid | None = None) -> Tokens:
    """The state of tokens x (B, T, C) before any merging: each stands for itself."""
    batch, count = x.shape[:2]
    index = torch.arange(count, device=x.device).expand(batch, count)
    return Tokens(index, torch.ones(batch, count, device=x.device), grid)


def merge(
    x: Tensor,
    tokens: Tokens,
    metric: Tensor,
    r: int,
    merger: Merger,
    prefix: int,
    attention: Tensor | None = None,
    depth: float = 0.0,
) -> tuple[Tensor, Tokens]:
    """Lets a method take r patches away from x and replaces the tokens that it joins by their size-weighted mean.

    Args:
        x: tokens (B, T, C), the `prefix` protected ones first.
        tokens: their state.
        metric: what the method compares tokens by, (B, T, D).
        r: how many tokens fewer, as `effective_schedule` says for T - prefix patches; 0 changes nothing.
        merger: an entry of MERGERS.
        prefix: how many leading tokens are protected.
        attention: the attention that each token gets, (B, T), for methods that ask for it.
        depth: the block's number over the number of blocks.

    Returns:
        x (B, T - r, C) and its state, prefix tokens first.
    """
    if r == 0:
        return x, tokens
    # Matched in fp32 whatever autocast says: bf16 scores tie and swap pairs, and fp16 cannot count above 2,048.
    with torch.autocast(x.device.type, enabled=False):
        patches_attention = None if attention is None else attention[:, prefix:].float()
        context = MergeContext(tokens.size[:, prefix:], patches_attention, tokens.grid, depth)
        # The choice of pairs has no derivative, so nothing of it is recorded for the backward pass.
        with torch.no_grad():
            assignment = merger.assign(metric[:, prefix:].float(), r, context)
        return apply_assignment(x, tokens, assignment, prefix)


def apply_assignment(x: Tensor, tokens: Tokens, assignment: Assignment, prefix: int) -> tuple[Tensor, Tokens]:
    """Merges x (B, T, C) by an assignment of its patches: a weighted mean over the tokens that share an index.

    A token weighs its size, times the weight that the assignment gives it, if it gives one.
    """
    batch, channels, count = x.shape[0], x.shape[2], prefix + assignment.count
    protected = torch.arange(prefix, device=x.device).expand(batch, prefix)
    index = torch.cat([protected, assignment.index + prefix], dim=1)  # (B, T)

    kept = weight = tokens.size
    if assignment.weight is not None:
        factor = torch.cat([torch.ones_like(protected, dtype=weight.dtype), assignment.weight], dim=1)
        kept, weight = tokens.size * (factor > 0), tokens.size * factor
    size = _sum_by_index(kept, index, count)
    total = size if assignment.weight is None else _sum_by_index(weight, index, count)
    # Each token's share in its mean comes first: what is then added up needs no division, and a token alone stays as
    # it is. index_add over all rows of the batch takes a tenth of a scatter_add along dimension 1 (docs/merging.md).
    parts = x * (weight / total.gather(1, index)).unsqueeze(-1)  # float32, whatever x is
    rows = (index + count * torch.arange(batch, device=x.device).unsqueeze(1)).flatten()
    mean = parts.new_zeros(batch * count, channels).index_add(0, rows, parts.flatten(0, 1))
    mean = mean.view(batch, count, channels).to(x.dtype)
    return mean, Tokens(index.gather(1, tokens.index), size, assignment.grid)


def _sum_by_index(value: Tensor, index: Tensor, count: int) -> Tensor:
    """(B, T) -> (B, count): the sum of the values that share an index."""
    return value.new_zeros(value.shape[0], count).scatter_add(1, index, value)


def unmerge(x: Tensor, tokens: Tokens, prefix: int = 0) -> Tensor:
    """Gives every input token its output token: (B, T, C) -> (B, P + N - prefix, C), the first `prefix` left out.

    In a soft state: the mean of the tokens that it is in, by its shares.
    """
    if tokens.soft is not None:
        return tokens.soft.share[:, prefix:].to(x.dtype) @ x
    return take(x, tokens.index[:, prefix:])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: x (B, T, C), index (B, K) -> (B, K, C).

    What x.gather(1, ...) gives, in a part of the time: whole rows are copied, and added up in the backward pass.
    """
    rows = index + x.shape[1] * torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, x.shape[2])


def log_size(tokens: Tokens) -> Tensor:
    """log size, (B, T) float32; in a soft state, which can leave nothing of a token, at least log 1e-6."""
    return tokens.size.log() if tokens.soft is None else tokens.size.clamp(min=1e-6).log()


def size_bias(tokens: Tokens) -> Tensor | None:
    """The bias of proportional attention, log size, (B, 1, 1, T) float32; None while nothing is merged.

    softmax(q k^T / sqrt(d) + log size) is attention over the duplicated tokens (Bolya et al., 2023, eq. 1).
    """
    return log_size(tokens)[:, None, None, :] if tokens.merged else None
