"""Merging by learned queries, each of which attends to all patches.

Renggli, Pinto, Houlsby, Mustafa, Puigcerver, Riquelme: Learning to Merge Tokens in Vision Transformers. 2022
(arXiv:2202.12015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..contract import Counts, MergeContext, Merger, Mixture
from ..mixtures import softmax_mixture


def patchmerger(metric: Tensor, r: int, context: MergeContext) -> Mixture:
    """Makes N - r output patches: of each learned query, the mean of all patches by the softmax of its products.

    With the queries W (M, D) and patches X (N, D):

        Y = softmax(W LN(X)^T) X        the softmax over the patches

    Where a patch goes is what the queries make of it: it is divided among the output patches in proportion to the
    weights that they give it. An output patch is not the mean of what it receives in this sense, since each query's
    weights sum to one, however much of the patches it takes.

    The paper's formula has X itself in the softmax. As in public code, LN is a norm with a learned scale and shift;
    the patches that are mixed are not normalised, so that the output remains on the scale of the residual stream. The
    queries are drawn from a normal distribution, and the products are not divided by sqrt(D). The paper merges between
    two blocks, here it is between attention and MLP. Sizes take no part in the softmax; in the paper, they take none in
    the attention that follows either, which is `merge.prop_attn: false`.

    The queries are learned with the model: before training, each attends to something at random.

    Args:
        metric: (B, N, D) float32, the patches.
        r: patches to remove; N - r is the number of queries.
        context: provides the queries.

    Returns:
        A mixture of N patches into N - r.
    """
    assert context.pooling is not None
    return softmax_mixture(context.pooling(metric))


class Queries(nn.Module):
    """Scores of patches by learned queries.

    Args:
        dim: width of a patch.
        count: number of queries M.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.queries = nn.Parameter(torch.randn(count, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, N, D) float32 -> (B, M, N) float32."""
        normed = self.norm(x.to(self.queries.dtype))
        found: Tensor = (self.queries @ normed.mT).float()
        return found


def mixing_macs(counts: Counts) -> int:
    """MACs of the products of M queries with N patches, and of the mixtures."""
    left = counts.patches - counts.removed
    return left * counts.patches * (counts.metric_dim + counts.embed_dim)


PATCHMERGER = Merger(patchmerger, macs=mixing_macs, metric="tokens", pooling=Queries)
