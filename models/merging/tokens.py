"""The state of merged tokens, and the two operations on it: merge and unmerge.

Merging is an assignment. A method returns one integer per token, the index of the output token that it joins; means,
sizes, maps and pictures all follow from these integers. A method that divides tokens among output tokens returns
matrices in place of integers (contract.Mixture), and the state is soft.

Shapes: B images, P prefix tokens (class token), N input patches, T current tokens (prefix included), C channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modes import without_autocast
from .adaptive import assign_each
from .contract import Adaptive, Answer, Assignment, Grid, MergeContext, Merger, Removal
from .mixtures import compose, mix

SHORT = 1e-3  # a mean shorter than this fraction of its longest member has no direction


class Soft(NamedTuple):
    """A soft state: input tokens are divided among tokens, by soft forms in training and always by Mixtures.

    Shares are not negative and rows sum to one, so that mass is conserved: sizes, which are the sums of columns, add up
    to the number of input tokens. Where tokens are masked, mass is lost, as if they were pruned. Prefix tokens are
    themselves alone. Pulling values back to the input tokens is linear in the values: `unmerge` multiplies by shares.
    """

    share: Tensor  # (B, P + N, T) float32: how much of each input token is in each token; rows sum to one
    # How many tokens still take part in merging: so many from the first, or, where tokens are masked, as many as
    # evaluation would have left
    active: int
    kept: Tensor | None = None  # (B, T) float32: 1 for tokens that are not masked, 0 for those that are; None: no masks
    losses: tuple[Tensor, ...] = ()  # what training adds to the loss: the mean of these scalars


class Tokens(NamedTuple):
    """The token that each input token became part of. Passed through the network next to `x`, as a value.

    In a soft state, `index` is the token with the largest share, and `size` is the sum of shares over input tokens.
    """

    # (B, P + N) int64: the token that each input token is now part of
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    size: Tensor  # (B, T) float32: how many input tokens each token stands for; bincount(index) if none was dropped
    grid: Grid | None = None  # rows and columns of the T - P patches, as long as they form a grid in row order
    soft: Soft | None = None
    input_grid: Grid | None = None  # rows and columns of the N input patches, where they are known
    # How many of the T tokens each image has, where the number depends on the image; the others are padding behind
    # them, of size 0, which receives no attention. None: all T
    left: tuple[int, ...] | None = None

    @property
    def merged(self) -> bool:
        """Whether any token has been merged so far. Static: it depends on shapes alone."""
        return self.left is not None or self.soft is not None or self.size.shape[1] < self.index.shape[1]


def initial_tokens(x: Tensor, grid: Grid | None = None) -> Tokens:
    """The state of tokens x (B, T, C) before any merging: each token stands for itself."""
    batch, count = x.shape[:2]
    index = torch.arange(count, device=x.device).expand(batch, count)
    return Tokens(index, torch.ones(batch, count, device=x.device), grid, input_grid=grid)


def mean_positions(tokens: Tokens, prefix: int) -> Tensor:
    """Where each patch lies in the image: the mean row and column of the input patches that it stands for.

    Args:
        tokens: the state, not soft. A pruned patch counts as a member of the token that it is shown as.
        prefix: number of leading tokens that are not patches.

    Returns:
        (B, T - prefix, 2) float32: row and column in units of patches; the first patch is at (0, 0).

    Raises:
        ValueError: the grid of the input patches is not known.
    """
    if tokens.input_grid is None:
        raise ValueError("merge.method: it uses the positions of patches, and the grid of these patches is not known")
    rows, columns = tokens.input_grid
    number = torch.arange(rows * columns, device=tokens.index.device)
    place = torch.stack([number // columns, number % columns], dim=-1).float()  # (N, 2)
    return mean_over_members(place.unsqueeze(0), tokens, prefix)


def mean_over_members(values: Tensor, tokens: Tokens, prefix: int) -> Tensor:
    """The mean of values of the input patches over those that each patch stands for.

    Args:
        values: (B, N, C) float32, or (1, N, C) for all images alike.
        tokens: the state. A pruned patch counts as a member of the token that it is shown as; in a soft state members
            are weighted by their shares.
        prefix: number of leading tokens that are not patches.

    Returns:
        (B, T - prefix, C) float32.
    """
    if tokens.soft is not None:
        share = tokens.soft.share[:, prefix:, prefix:]  # (B, N, T - prefix)
        return share.mT @ values / share.sum(1).clamp(min=1e-6).unsqueeze(-1)
    batch, count, width = tokens.size.shape[0], tokens.size.shape[1] - prefix, values.shape[2] + 1
    index = (tokens.index[:, prefix:] - prefix).unsqueeze(-1).expand(-1, -1, width)
    counted = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1).expand(batch, -1, -1)
    total = values.new_zeros(batch, count, width).scatter_add(1, index, counted)
    members = total[..., -1:] if tokens.left is None else total[..., -1:].clamp(min=1)  # padding has none
    return total[..., :-1] / members


def merge_context(
    tokens: Tokens,
    merger: Merger,
    prefix: int,
    attention: Tensor | None = None,
    depth: float = 0.0,
    pooling: nn.Module | None = None,
) -> MergeContext:
    """What a method may use besides the metric, for tokens with this state; arguments as for `merge`."""
    patches_attention = None if attention is None else attention[:, prefix:].float()
    position = mean_positions(tokens, prefix) if merger.position else None
    return MergeContext(tokens.size[:, prefix:], patches_attention, tokens.grid, depth, position, pooling)


def merge(
    x: Tensor,
    tokens: Tokens,
    metric: Tensor,
    r: Removal,
    merger: Merger,
    prefix: int,
    attention: Tensor | None = None,
    depth: float = 0.0,
    pooling: nn.Module | None = None,
) -> tuple[Tensor, Tokens]:
    """Removes r patches from x: replaces the tokens that a method joins by their size-weighted mean.

    Args:
        x: tokens (B, T, C), the `prefix` protected ones first.
        tokens: their state.
        metric: what the method compares tokens by, (B, T, D).
        r: number of tokens to remove, as `effective_schedule` returns it for T - prefix patches; 0 changes nothing.
            With Adaptive, images are matched one by one, and each loses as many as the method says.
        merger: an entry of MERGERS.
        prefix: number of leading tokens that are protected.
        attention: the attention that each token receives, (B, T), for methods that request it.
        depth: the block's number divided by the number of blocks.
        pooling: the learned part of a method that has one, for T - r - prefix output patches.

    Returns:
        x (B, T - r, C) and its state, prefix tokens first. With Adaptive, as many tokens as the image with the most of
        them has; the others are padded with zeros.
    """
    if r == 0:
        return x, tokens
    # Matched in fp32 even under autocast: bf16 scores tie and swap pairs, and fp16 cannot count above 2,048.
    with without_autocast(x.device.type):
        context = merge_context(tokens, merger, prefix, attention, depth, pooling)
        # The choice of pairs has no derivative, so it is not recorded for the backward pass.
        with torch.no_grad() if torch.is_grad_enabled() and pooling is None else nullcontext():
            answer: Answer
            if isinstance(r, Adaptive):
                answer, left = assign_each(merger, metric[:, prefix:].float(), r, context, tokens.left, prefix)
            else:
                answer, left = merger.assign(metric[:, prefix:].float(), r, context), None
        x, state = apply_answer(x, tokens, answer, prefix)
        return x, state if left is None else state._replace(left=left)


def apply_answer(x: Tensor, tokens: Tokens, answer: Answer, prefix: int) -> tuple[Tensor, Tokens]:
    """Merges x (B, T, C) by what a method answered for its patches. A mixture leaves a soft state."""
    if isinstance(answer, Assignment):
        return apply_assignment(x, tokens, answer, prefix)
    before = tokens.soft.share if tokens.soft is not None else None
    if before is None and tokens.merged:
        before = F.one_hot(tokens.index, x.shape[1]).float()
    share = compose(before, answer.share, prefix)
    # As share.sum(1), but without the product of shares, which the logits of a ViT do not need.
    size = (tokens.size[:, prefix:, None] * answer.share).sum(1)
    size = torch.cat([tokens.size[:, :prefix], size], dim=1)
    state = Tokens(share.argmax(-1), size, soft=Soft(share, share.shape[2]), input_grid=tokens.input_grid)
    return mix(x, answer.weight, prefix), state


def apply_assignment(x: Tensor, tokens: Tokens, assignment: Assignment, prefix: int) -> tuple[Tensor, Tokens]:
    """Merges x (B, T, C) by an assignment of its patches: a weighted mean over the tokens that share an index.

    A token's weight is its size, multiplied by the weight in the assignment if there is one. With `keep_norm`, a mean
    of several tokens is scaled to the greatest of their norms (methods/tofu.py).
    """
    batch, channels, count = x.shape[0], x.shape[2], prefix + assignment.count
    index = assignment.index
    if prefix:  # prefix tokens are never merged, so their entries in the state are always 0, 1, ..., prefix - 1
        index = torch.cat([tokens.index[:, :prefix], index + prefix], dim=1)  # (B, T)

    kept = weight = tokens.size
    if assignment.weight is not None:
        factor = torch.cat([assignment.weight.new_ones(batch, prefix), assignment.weight], dim=1)
        kept, weight = tokens.size * (factor > 0), tokens.size * factor
    size = _sum_by_index(kept, index, count)
    total = size if assignment.weight is None else _sum_by_index(weight, index, count)
    # Tokens are multiplied by their share in the mean before they are added up: no division is needed afterwards, and a
    # token that merges with no other stays as it is. index_add over all rows of the batch takes a tenth of the time of
    # a scatter_add along dimension 1 (docs/merging.md).
    parts = x * (weight / total.gather(1, index)).unsqueeze(-1)  # float32, whatever x is
    mean = parts.new_zeros(batch * count, channels).index_add_(0, _rows(index, count), parts.flatten(0, 1))
    mean = mean.view(batch, count, channels)
    if assignment.keep_norm:
        mean = _with_greatest_norm(mean, x, index, weight > 0)
    mean = mean.to(x.dtype)
    state = Tokens(index.gather(1, tokens.index), size, assignment.grid, input_grid=tokens.input_grid)
    return mean, state


def _with_greatest_norm(mean: Tensor, x: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Scales each mean (B, count, C) to the greatest norm among its members: those of x (B, T, C) that `counts` (B, T).

    A mean shorter than SHORT times that norm has no direction and stays as it is, and so does the mean of a single
    token, to the last bit.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=mean.dtype) * counts
    greatest = torch.zeros_like(mean[..., 0]).scatter_reduce(1, index, norm, "amax")
    length = torch.linalg.vector_norm(mean, dim=-1)
    members = _sum_by_index(counts.to(mean.dtype), index, mean.shape[1])
    scaled = (members > 1) & (length > SHORT * greatest)
    factor = greatest / torch.where(scaled, length, 1.0)  # finite everywhere: gradients pass through both branches
    return mean * torch.where(scaled, factor, 1.0).unsqueeze(-1)


def _sum_by_index(value: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums the values that share an index: (B, T) -> (B, count)."""
    return value.new_zeros(value.shape[0], count).scatter_add_(1, index, value)


def _rows(index: Tensor, count: int) -> Tensor:
    """Turns positions (B, K) in images of `count` tokens into rows of x.flatten(0, 1), (B x K,)."""
    batch = index.shape[0]
    if batch > 1:
        index = index + count * torch.arange(batch, device=index.device).unsqueeze(1)
    return index.flatten()


def unmerge(x: Tensor, tokens: Tokens, prefix: int = 0) -> Tensor:
    """Returns the output token of every input token except the first `prefix`: (B, T, C) -> (B, P + N - prefix, C).

    In a soft state: the mean of the tokens that it is part of, weighted by its shares.
    """
    if tokens.soft is not None:
        return tokens.soft.share[:, prefix:].to(x.dtype) @ x
    return take(x, tokens.index[:, prefix:])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Selects rows of each image: x (B, T, C), index (B, K) -> (B, K, C).

    The same as x.gather(1, ...), but faster: whole rows are copied, and added up in the backward pass.
    """
    return x.flatten(0, 1).index_select(0, _rows(index, x.shape[1])).view(*index.shape, x.shape[2])


def log_size(tokens: Tokens) -> Tensor:
    """The logarithm of the sizes, (B, T) float32; in a soft state, where sizes can reach 0, at least log 1e-6; 0 for
    padding."""
    if tokens.left is not None:
        return tokens.size.clamp(min=1).log()
    return tokens.size.log() if tokens.soft is None else tokens.size.clamp(min=1e-6).log()


def size_bias(tokens: Tokens, *, proportional: bool = True) -> Tensor | None:
    """The bias of attention, log size, (B, 1, 1, T) float32; None as long as nothing is merged.

    softmax(q k^T / sqrt(d) + log size) is attention over the duplicated tokens (Bolya et al., 2023, eq. 1). Padding has
    the bias -inf.

    Args:
        tokens: their state.
        proportional: whether attention is weighted by size; otherwise only padding has a bias.
    """
    if not tokens.merged or not (proportional or tokens.left):
        return None
    batch, count = tokens.size.shape
    bias = log_size(tokens) if proportional else torch.zeros_like(tokens.size)
    if tokens.left is not None:
        bias = bias.masked_fill(tokens.size == 0, -torch.inf)
    return bias.view(batch, 1, 1, count)
