"""Merging by an optimal transport of the patches' mass to learned queries.

Haurum, Escalera, Taylor, Moeslund: Which Tokens to Use? Investigating Token Reduction in Vision Transformers. ICCV
Workshops 2023, which compares it as a baseline; the iteration is that of Cuturi: Sinkhorn Distances: Lightspeed
Computation of Optimal Transport. NeurIPS 2013.
"""

from __future__ import annotations

from math import log
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Counts, MergeContext, Merger, Mixture, Option
from .patchmerger import mixing_macs

LEAST_SIZE = 1e-6  # of a patch, before its logarithm is taken


def sinkhorn(
    metric: Tensor,
    r: int,
    context: MergeContext,
    transports: Annotated[int, Option("iterations of the transport", least=1)] = 3,
    sharpness: Annotated[int, Option("factor on cosines; the larger, the fewer queries share a patch", least=1)] = 1,
) -> Mixture:
    """Divides all patches among N - r learned queries by their cosines, so that each query receives about as much.

    With the cosines c_ji of query j and patch i, the sizes m_i and M queries, T is the plan of transport

        T_ji = exp(sharpness c_ji + u_j + v_i)        sum_j T_ji = m_i        sum_i T_ji = sum_i m_i / M

    whose u and v are found by meeting the second condition and then the first, `transports` times from v_i = log m_i.
    The first therefore holds exactly, so that nothing is lost, and the second as closely as the iteration has come.
    Patch i goes to output patch j by T_ji / m_i, and

        y_j = sum_i T_ji x_i / sum_i T_ji

    is the mean of what output patch j receives. Its size, sum_i T_ji, need not be a whole number.

    Towards large `sharpness`, which is the inverse of the weight of the plan's entropy and 1 in the comparison, each
    patch goes to one query. With 1, no query receives more than e^2 times as much of a patch as another from its cosine
    alone, so that each output patch is a blurred mean of all.

    Differences from the public code of the comparison: its output is a sum of unit vectors, sum_i T_ji x_i / |x_i|,
    here it is a mean of the patches; its marginals are uniform with sums that differ, here they have the same sum; it
    has no sizes, which are 1 before the first merge; it scales the queries to norm 1 after each step, here their norm
    has no effect. The comparison merges between two blocks, here it is between attention and MLP.

    The queries are learned with the model: before training, they are directions at random.

    Args:
        metric: (B, N, D) float32, the patches.
        r: patches to remove; N - r is the number of queries.
        context: provides the queries and the sizes.
        transports, sharpness: see above.

    Returns:
        A mixture of N patches into N - r.
    """
    assert context.pooling is not None
    score = sharpness * context.pooling(metric)  # (B, M, N)
    mass = context.size.clamp(min=LEAST_SIZE).log().unsqueeze(1)  # (B, 1, N)
    each = mass.logsumexp(-1, keepdim=True) - log(metric.shape[1] - r)  # (B, 1, 1)
    v = mass
    for _ in range(transports):
        u = each - (score + v).logsumexp(-1, keepdim=True)
        v = mass - (score + u).logsumexp(1, keepdim=True)
    plan = score + u  # v cancels in a patch's shares
    return Mixture((plan + v).softmax(-1), plan.softmax(1).mT)


class Directions(nn.Module):
    """Cosines of patches with learned queries.

    Args:
        dim: width of a patch.
        count: number of queries M.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, N, D) float32 -> (B, M, N) float32."""
        unit = F.normalize(x, dim=-1, eps=1e-4)  # 1e-12 would give gradients of 1e12
        return F.normalize(self.queries.float(), dim=-1) @ unit.mT


def macs(counts: Counts, **options: Any) -> int:
    """MACs of the cosines and of the mixtures."""
    return mixing_macs(counts)


SINKHORN = Merger(sinkhorn, macs=macs, metric="tokens", pooling=Directions)
