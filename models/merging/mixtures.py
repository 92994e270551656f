"""Mixtures: output patches that are combinations of all patches, as matrices in place of an index.

A hard assignment is a special case of both matrices: `share` has a single 1 in each row, and `weight` the members'
shares in their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .contract import Mixture


def softmax_mixture(logits: Tensor) -> Mixture:
    """Each output patch is a softmax over the patches; each patch is divided as the output patches weight it.

        weight_ji = exp l_ji / sum_k exp l_jk          share_ij = weight_ji / sum_k weight_ki

    Args:
        logits: (B, M, N) float32, l.

    Returns:
        The mixture of N patches into M. Its shares are computed from logarithms, so that those of a patch with next to
        no weight anywhere sum to one as well.
    """
    log_weight = logits.log_softmax(-1)
    return Mixture(log_weight.exp(), log_weight.softmax(1).mT)


def mix(x: Tensor, weight: Tensor, prefix: int) -> Tensor:
    """Mixes the patches of tokens x (B, P + N, C) by weight (B, M, N) float32 -> (B, P + M, C), prefix first."""
    exact = torch.promote_types(x.dtype, weight.dtype)
    mixed = (weight.to(exact) @ x[:, prefix:].to(exact)).to(x.dtype)
    return torch.cat([x[:, :prefix], mixed], dim=1) if prefix else mixed


def compose(before: Tensor | None, share: Tensor, prefix: int) -> Tensor:
    """The shares of the input tokens in the output tokens.

    Args:
        before: shares of the input tokens in the tokens that are mixed, (B, P + N0, P + N); None: each is itself.
        share: shares of the patches among them in the output patches, (B, N, M).
        prefix: number of leading tokens P, which are themselves alone.

    Returns:
        (B, P + N0, P + M) float32.
    """
    patches = share if before is None else before[:, prefix:, prefix:] @ share
    if not prefix:
        return patches
    itself = torch.eye(prefix, dtype=patches.dtype, device=patches.device)
    return F.pad(patches, (prefix, 0, prefix, 0)) + F.pad(itself, (0, patches.shape[2], 0, patches.shape[1]))


def compose_macs(inputs: int, patches: int, left: int) -> int:
    """MACs of `compose` for so many input patches, patches that are mixed, and output patches."""
    return inputs * patches * left if patches < inputs else 0
