"""The state of merged tokens, and the two operations on it: merge and unmerge.

Merging is an assignment. A method answers with one integer per token, the index of the output token that it joins;
means, sizes, maps and pictures all follow from that integer.

Shapes: B images, P prefix tokens (class token), N patches, T tokens now (prefix included), C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """What became of the input tokens. Travels through the network beside `x`, as a value."""

    index: Tensor  # (B, P + N) int64: the token that each input token is now part of
    size: Tensor  # (B, T) float32: how many input tokens each token stands for; bincount(index)

    @property
    def merged(self) -> bool:
        """Whether any token was merged so far. Static: it is a matter of shapes."""
        return self.size.shape[1] < self.index.shape[1]


class Assignment(NamedTuple):
    """A method's answer: patch i becomes part of output patch `index[:, i]`, of which there are `count`."""

    index: Tensor  # (B, patches before) int64
    count: int


class MergeContext(NamedTuple):
    """What a method may look at beside the metric. Patches only: prefix tokens are protected outside the methods."""

    size: Tensor  # (B, patches before) float32


Method = Callable[[Tensor, int, MergeContext], Assignment]


def initial_tokens(x: Tensor) -> Tokens:
    """The state of tokens x (B, T, C) before any merging: each stands for itself."""
    batch, count = x.shape[:2]
    index = torch.arange(count, device=x.device).expand(batch, count)
    return Tokens(index, torch.ones(batch, count, device=x.device))


def merge(x: Tensor, tokens: Tokens, metric: Tensor, r: int, method: Method, prefix: int) -> tuple[Tensor, Tokens]:
    """Lets `method` take r patches away from x and replaces the tokens that it joins by their size-weighted mean.

    Args:
        x: tokens (B, T, C), the `prefix` protected ones first.
        tokens: their state.
        metric: what the method compares tokens by, (B, T, D).
        r: how many tokens fewer, at most what `schedule.limit` allows for T - prefix patches; 0 changes nothing.
        method: an entry of MERGERS.
        prefix: how many leading tokens are protected.

    Returns:
        x (B, T - r, C) and its state, prefix tokens first.
    """
    if r == 0:
        return x, tokens
    # Matched in fp32 whatever autocast says: bf16 scores tie and swap pairs, and fp16 cannot count above 2,048.
    with torch.autocast(x.device.type, enabled=False):
        context = MergeContext(tokens.size[:, prefix:])
        # The choice of pairs has no derivative, so nothing of it is recorded for the backward pass.
        with torch.no_grad():
            assignment = method(metric[:, prefix:].float(), r, context)
        return apply_assignment(x, tokens, assignment, prefix)


def apply_assignment(x: Tensor, tokens: Tokens, assignment: Assignment, prefix: int) -> tuple[Tensor, Tokens]:
    """Merges x (B, T, C) by an assignment of its patches: a size-weighted mean over the tokens that share an index."""
    batch, _, channels = x.shape
    count = prefix + assignment.count
    protected = torch.arange(prefix, device=x.device).expand(batch, prefix)
    index = torch.cat([protected, assignment.index + prefix], dim=1)  # (B, T)

    size = tokens.size.new_zeros(batch, count).scatter_add(1, index, tokens.size)
    weighted = x.float() * tokens.size.unsqueeze(-1)
    total = weighted.new_zeros(batch, count, channels)
    total = total.scatter_add(1, index.unsqueeze(-1).expand(-1, -1, channels), weighted)
    mean = (total / size.unsqueeze(-1)).to(x.dtype)
    return mean, Tokens(index.gather(1, tokens.index), size)


def unmerge(x: Tensor, tokens: Tokens, prefix: int = 0) -> Tensor:
    """Gives every input token its output token: (B, T, C) -> (B, P + N - prefix, C), the first `prefix` left out."""
    index = tokens.index[:, prefix:]
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def size_bias(tokens: Tokens) -> Tensor | None:
    """The bias of proportional attention, log size, (B, 1, 1, T) float32; None while nothing is merged.

    softmax(q k^T / sqrt(d) + log size) is attention over the duplicated tokens (Bolya et al., 2023, eq. 1).
    """
    return tokens.size.log()[:, None, None, :] if tokens.merged else None
