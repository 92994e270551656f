"""Merging patches that have many similar ones, by an energy motivated by spectral graph theory.

Tran, Nguyen, Nguyen, Nguyen, Le, Xie, Sonntag, Zou, Nguyen, Niepert: Accelerating Transformers with
Spectrum-Preserving Token Merging (PiToMe). NeurIPS 2024, section 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, MergeContext, Merger, all_pairs_macs, half
from ..tokens import take

ALPHA = 1.0


def pitome(metric: Tensor, r: int, context: MergeContext) -> Assignment:
    """Merges the 2r patches of highest energy in pairs or larger groups; all others are protected.

    With unit vectors v, the energy of patch i is

        E_i = 1/N sum_j f_m(v_i . v_j),   f_m(x) = x where x >= m, else alpha (exp(x - m) - 1),

    high in large clusters, low for isolated patches. The margin m = 0.9 - 0.9 depth decreases from block to block;
    alpha is 1. In order of decreasing energy, the 2r patches are assigned alternately to A and B; each patch of A
    merges into the most similar patch of B. The output holds the protected patches, then B, both in order of
    decreasing energy. Ties go to the lower position.

    The sum includes j = i, which adds the same to every patch except a zero vector. The public code computes
    f_m(x) = x - m where x >= m, without the paper's jump at m, and in places margins that start at 0.75.
    As for all methods here, means are weighted by size, and attention is proportional unless that is turned off.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r <= N // 2.
        context: provides the depth.

    Returns:
        An assignment to N - r output patches.
    """
    batch, patches, _ = metric.shape
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 0 to everything
    similarity = unit @ unit.transpose(1, 2)
    order = energy(similarity, margin=0.9 - 0.9 * context.depth).argsort(dim=-1, descending=True, stable=True)

    sources, destinations, protected = order[:, 0 : 2 * r : 2], order[:, 1 : 2 * r : 2], order[:, 2 * r :]
    between = take(similarity, sources)  # (B, r, N)
    partner = between.gather(2, destinations.unsqueeze(1).expand(-1, r, -1)).argmax(dim=-1)  # (B, r, r) -> (B, r)

    place = torch.arange(patches - r, device=metric.device).expand(batch, -1)
    index = torch.empty_like(order).scatter(1, torch.cat([protected, destinations], dim=1), place)
    return Assignment(index.scatter(1, sources, patches - 2 * r + partner), patches - r)


def energy(similarity: Tensor, margin: float) -> Tensor:
    """The energy E of each patch, (B, N), from all similarities (B, N, N)."""
    # f_m as a sum of two parts, each 0 where the other applies: `where` with a condition takes several times longer.
    under = float(np.nextafter(np.float32(margin), np.float32(-1)))  # `threshold` keeps what is greater than this
    below = (similarity - margin).clamp_(max=0).exp_().sub_(1).mul_(ALPHA)
    return F.threshold(similarity, under, 0.0).add_(below).mean(dim=-1)


PITOME = Merger(pitome, half, all_pairs_macs)
