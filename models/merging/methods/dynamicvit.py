"""Dropping patches by a learned prediction: masks in training, the best are kept in evaluation.

Rao, Zhao, Liu, Lu, Zhou, Hsieh: DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification. NeurIPS
2021 (arXiv:2106.02034).

With patches x (N, C), D the decisions so far (1: kept, 0: dropped), and C' = C / 2:

    local_i = GELU(W1 LN(x_i))        global = sum_i D_i GELU(W2 LN(x_i)) / sum_i D_i        both of width C'
    pi_i = softmax(MLP([local_i, global]))        the probabilities that patch i is dropped and kept

Training: D <- D * GumbelSoftmax(log pi)_keep, one for each patch, drawn anew in every step, with the gradient of the
soft value (straight through). All patches stay, and attention is masked:

    A_ij = exp(P_ij) D_j / sum_k exp(P_ik) D_k

which is proportional attention with sizes D, so the mask needs no code of its own. The share that is kept learns to be
what evaluation keeps: with rho_s the share of all N patches that block s of S leaves,

    L_ratio = 1 / S sum_s mean over images of (rho_s - 1 / N sum_i D_i^s)^2

times `ratio_weight` (the paper's 2) is added to the run's loss. The paper's other terms are the workbench's own
(`train.teacher`). The paper weights labels, logits, tokens and ratio by 1, 0.5, 0.5 and 2. In the same proportions:
`train.distill: {logits: 0.333, tokens: 0.333}` and `ratio_weight: 1.333`.

Evaluation: the r patches with the least probability of being kept go.

Differences from the paper. Patches go between attention and MLP of a block, in the paper between two blocks. A dropped
patch does not attend to itself in training (the paper's G_ii = 1), which changes only features of dropped patches; it
keeps a size of 2e-6, whose logarithm has a gradient. On a map a dropped patch is shown as the most similar kept one, in
training too. Widths and activations of the MLP (C, C / 2, C / 4, 2) are those of the public code.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Assignment, Counts, MergeContext, Merger, Option
from ..tokens import Soft, Tokens
from .topk import LEAST_ATTENTION, keep_best

FAINT = 2e-6  # the size of a dropped patch in training; above the limit of `log_size`, so that it has a gradient
DROP, KEEP = 0, 1
RATIO_WEIGHT = 2.0


def dynamicvit(
    metric: Tensor,
    r: int,
    context: MergeContext,
    prune: Annotated[bool, Option("drop patches instead of fusing them; their mass is lost")] = True,
    ratio_weight: Annotated[
        float, Option("weight, in training, of the squared difference between kept and requested share", least=0)
    ] = RATIO_WEIGHT,
) -> Assignment:
    """Evaluation: keeps the patches with the greatest predicted probabilities, in their original order.

    Without `prune` the r + 1 others are fused into one mean, weighted by their probabilities, as `topk` does by
    attention; training masks them all the same.

    Args:
        metric: (B, N, D) float32, the patches.
        r: patches to remove, 0 <= r < N.
        context: provides the predictor, and the sizes.
        prune: drop instead of fusing.
        ratio_weight: of no effect here; see `masked`.

    Returns:
        An assignment to N - r output patches.
    """
    assert context.pooling is not None
    kept = context.pooling(metric, torch.ones_like(context.size))[..., KEEP].exp()
    return keep_best(metric, kept.clamp(min=LEAST_ATTENTION), r, context.size, prune)


class Predictor(nn.Module):
    """Predicts whether patches are kept.

    Args:
        dim: width of a patch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half, inner, last = widths(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.embed = nn.Linear(dim, 2 * half)  # local and global features
        self.fc1, self.fc2, self.fc3 = nn.Linear(2 * half, inner), nn.Linear(inner, last), nn.Linear(last, 2)
        for layer in (self.embed, self.fc1, self.fc2, self.fc3):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """Patches (B, N, D) float32, which of them are kept (B, N) -> (B, N, 2) float32, log of [drop, keep]."""
        local, every = F.gelu(self.embed(self.norm(x.to(self.fc3.weight.dtype)))).chunk(2, dim=-1)
        share = kept / kept.sum(1, keepdim=True).clamp(min=FAINT)
        mean = (share.unsqueeze(-1) * every).sum(1, keepdim=True).to(local.dtype)
        z = torch.cat([local, mean.expand_as(local)], dim=-1)
        found: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(z))))).float()
        return found.log_softmax(-1)


def widths(dim: int) -> tuple[int, int, int]:
    """Widths of local or global features and of the two hidden layers."""
    return max(dim // 2, 1), max(dim // 2, 1), max(dim // 4, 1)


def masked(
    x: Tensor,
    tokens: Tokens,
    metric: Tensor,
    r: int,
    prefix: int,
    pooling: nn.Module,
    prune: bool = True,
    ratio_weight: float = RATIO_WEIGHT,
) -> tuple[Tensor, Tokens]:
    """Training: draws which patches are kept; all tokens remain, and those that are dropped have next to no size.

    Args:
        x: tokens (B, T, C), the `prefix` protected ones first.
        tokens: their state.
        metric: (B, T, D) float32, the tokens.
        r: patches that evaluation would remove.
        prefix: number of leading tokens that are protected.
        pooling: the predictor.
        prune: of no effect here; see `dynamicvit`.
        ratio_weight: weight of the ratio loss.

    Returns:
        x as it is, and its soft state, with one loss more.
    """
    whole = torch.ones_like(tokens.size)
    soft = tokens.soft or Soft(F.one_hot(tokens.index, x.shape[1]).float(), x.shape[1])
    before = whole if soft.kept is None else soft.kept
    log_pi = pooling(metric[:, prefix:], before[:, prefix:])
    drawn = before[:, prefix:] * F.gumbel_softmax(log_pi, hard=True)[..., KEEP]
    kept = torch.cat([whole[:, :prefix], drawn], dim=1)

    patches, left = x.shape[1] - prefix, soft.active - r
    loss = ratio_weight * ((left - prefix) / patches - drawn.mean(1)).square().mean()
    mass = (tokens.size / _of_mass(before)).detach()
    index = _shown(metric.detach(), kept.detach(), prefix).gather(1, tokens.index)
    soft = Soft(F.one_hot(index, x.shape[1]).float(), left, kept, (*soft.losses, loss))
    return x, Tokens(index, mass * _of_mass(kept), soft=soft, input_grid=tokens.input_grid)


def _of_mass(kept: Tensor) -> Tensor:
    """The share of its mass that a token has: 1 where it is kept, FAINT where it is not."""
    return FAINT + (1 - FAINT) * kept


def _shown(metric: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """The token that each token is shown as, (B, T): itself if it is kept, otherwise the most similar kept patch."""
    unit = F.normalize(metric[:, prefix:], dim=-1)
    dropped = kept[:, prefix:] < 0.5
    similarity = (unit @ unit.mT).masked_fill(dropped.unsqueeze(1), -torch.inf)
    nearest = similarity.argmax(-1) + prefix
    itself = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    shown = torch.where(dropped, nearest, itself[:, prefix:])
    return torch.cat([itself[:, :prefix], shown], dim=1)


def macs(counts: Counts, prune: bool, ratio_weight: float) -> int:
    """MACs, with `prune`, of each dropped with each kept patch."""
    return prune * counts.removed * (counts.patches - counts.removed) * counts.metric_dim


def linear_macs(counts: Counts) -> int:
    """MACs of the predictor."""
    half, inner, last = widths(counts.embed_dim)
    return counts.patches * (counts.embed_dim * 2 * half + 2 * half * inner + inner * last + last * 2)


DYNAMICVIT = Merger(
    dynamicvit,
    macs=macs,
    metric="tokens",
    soft=masked,
    pooling=lambda dim, count: Predictor(dim),
    sized=False,
    linear=linear_macs,
)
