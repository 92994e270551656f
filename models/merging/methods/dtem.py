"""Merging by a learned metric: soft merging in training, bipartite soft matching in evaluation.

Lee, Hong: Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers. NeurIPS 2024. From the
paper and the authors' published procedure are the embedding (one linear layer on the attention's input, used only for
matching and without a gradient into the tokens), soft grouping by the relaxed top-r of Xie and Ermon
(Reparameterizable Subset Sampling via Continuous Relaxations, IJCAI 2019), in which each source considers its three
nearest destinations and gives away at most all of itself, soft merging by effective sizes, and two temperatures of 0.1.
With cosines c_ab and p^t the softmax of l^t over all those pairs (a, b):

    l^1_ab = c_ab / (0.1 temperature)      l^(t+1)_ab = l^t_ab + log(1 - sum_b p^t_ab) / temperature      t = 1 ... r
    s_ab = sum_t p^t_ab / max(1, sum_b sum_t p^t_ab)
    x_b <- (m_b x_b + sum_a s_ab m_a x_a) / (m_b + sum_a s_ab m_a)
    m_b <- m_b + sum_a s_ab m_a            m_a <- m_a (1 - sum_b s_ab)

Differences from the authors' code: the exact gradient of the division by max(1, .) (theirs treats the divisor as a
constant); an embedding as wide as one attention head for every model (theirs: two heads from a width of 1,024 on); the
tokens are ordered as evaluation would leave them, first the remaining sources, then the destinations, and the r sources
that gave away most move to the end, where they still receive attention according to their remaining size but take no
further part in merging (theirs: sorted by size, the r smallest); and each input token's share in every token is kept,
so that maps can be drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, MergeContext, Merger, half, halves_macs
from ..tokens import Soft, Tokens
from .tome import tome

SPREAD = 0.1  # the first temperature: cosines are divided by it
NEAREST = 3  # destinations that each source considers; more where several tie for the last place
TINY = 1e-30  # lower limit of the remainder of a source, before its logarithm is taken


def dtem(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Evaluation: `tome` on the learned metric (B, N, D). 0 <= r <= N // 2 -> N - r output patches."""
    return tome(metric, r, context)


def soften(
    x: Tensor, tokens: Tokens, metric: Tensor, r: int, prefix: int, temperature: float = 0.1
) -> tuple[Tensor, Tokens]:
    """Training: every source gives a share of itself to every destination.

    All tokens remain, so a training step costs what it costs without merging plus r softmaxes over the sources of each
    image and a product of shares, T^3 / 4 MACs per block.

    Args:
        x: tokens (B, T, C), the `prefix` protected ones first.
        tokens: their state.
        metric: (B, T, D) float32, with its gradient.
        r: patches that evaluation would remove, at most half of the patches that still take part in merging.
        prefix: number of leading tokens that are protected.
        temperature: of the relaxed top-r; towards 0, sizes and means approach those of evaluation.

    Returns:
        x (B, T, C) and its soft state, which is float32 for any dtype of x.
    """
    share, active = (tokens.soft or Soft(F.one_hot(tokens.index, x.shape[1]).float(), x.shape[1]))[:2]
    a, b = slice(prefix + 1, active, 2), slice(prefix, active, 2)
    group, taken = grouped(metric[:, a], metric[:, b], r, temperature)  # s (B, sources, destinations), (B, sources)

    values = x.float()
    given = tokens.size[:, a].unsqueeze(-1) * group  # s_ab m_a
    size = tokens.size[:, b] + given.sum(1)
    mean = (tokens.size[:, b].unsqueeze(-1) * values[:, b] + given.mT @ values[:, a]) / size.unsqueeze(-1)
    left = (1 - group.sum(-1)).clamp(min=0)
    ceded, received = share[:, :, a] * left.unsqueeze(1), share[:, :, b] + share[:, :, a] @ group

    order = _order(taken, r, prefix, mean.shape[1], x.shape[1] - active)
    values = torch.cat([values[:, :prefix], values[:, a], mean, values[:, active:]], dim=1)
    values = values.gather(1, order.unsqueeze(-1).expand_as(values)).to(x.dtype)
    share = torch.cat([share[:, :, :prefix], ceded, received, share[:, :, active:]], dim=2)
    share = share.gather(2, order.unsqueeze(1).expand_as(share))
    soft = Soft(share, active - r)
    return values, Tokens(share.argmax(-1), share.sum(1), soft=soft, input_grid=tokens.input_grid)


def grouped(sources: Tensor, destinations: Tensor, r: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Soft grouping: how much of each source goes to each destination.

    All pairs of a source are reduced by the same log(1 - .), so the proportions in which it divides among destinations
    never change. The softmax over all pairs therefore factorises into one over sources, of the log-sum-exp of their
    pairs, times one over each source's destinations: r steps over S numbers instead of S x D.

    Args:
        sources, destinations: (B, S, C) and (B, D, C).
        r: number of sources to take, at most S.
        temperature: of the relaxed top-r.

    Returns:
        s (B, S, D), whose rows sum to at most 1; and how much of each source was taken (B, S), without that limit.
    """
    unit_a, unit_b = (
        F.normalize(m, dim=-1, eps=1e-4) for m in (sources, destinations)
    )  # 1e-12 would give gradients of 1e12
    logits = unit_a @ unit_b.mT / (SPREAD * temperature)
    nearest = logits.topk(min(NEAREST, logits.shape[-1])).values[..., -1:]
    logits = logits.masked_fill(logits < nearest, -torch.inf)
    level, taken = logits.logsumexp(-1), torch.zeros_like(logits[..., 0])
    for _ in range(r):
        p = level.softmax(-1)
        taken = taken + p
        level = level + (1 - p).clamp(min=TINY).log() / temperature
    return taken.clamp(max=1).unsqueeze(-1) * logits.softmax(-1), taken


def _order(taken: Tensor, r: int, prefix: int, destinations: int, inactive: int) -> Tensor:
    """The order of the output tokens, (B, T): prefix, remaining sources, destinations, merged sources, inactive."""
    gone = torch.zeros_like(taken).scatter(1, taken.argsort(dim=1, descending=True, stable=True)[:, :r], 1.0)
    ranks = [gone.new_full((len(gone), count), rank) for rank, count in ((0, prefix), (2, destinations), (4, inactive))]
    return torch.cat([ranks[0], 1 + 2 * gone, *ranks[1:]], dim=1).argsort(dim=1, stable=True)


DTEM = Merger(dtem, half, halves_macs, metric="learned", soft=soften)
