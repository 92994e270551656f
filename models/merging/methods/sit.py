"""Merging by a learned score of every patch for every output patch: token slimming.

Zong, Li, Song, Wang, Qiao, Leng, Liu: Self-slimmed Vision Transformer. ECCV 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Counts, MergeContext, Merger, Mixture
from ..mixtures import softmax_mixture

HIDDEN = 0.5  # width of the hidden layer, divided by that of a patch


def sit(metric: Tensor, r: int, context: MergeContext) -> Mixture:
    """Makes N - r output patches: means of all patches by the softmax of scores that a small MLP gives each patch.

    With patches X (N, D), the hidden width D / 2 and M output patches:

        A = softmax(s W2 GELU(W1 LN(X)))        (N, M), the softmax over the patches
        Y = A^T X

    Where a patch goes follows from the weights as for `patchmerger`: in proportion to its row of A.

    This is the paper's token slimming module alone. The paper trains it with a distillation that recovers the patches
    (`train.teacher` is the workbench's own). It merges between two blocks, here it is between attention and MLP. Sizes
    take no part in the softmax; in the paper, they take none in the attention that follows either, which is
    `merge.prop_attn: false`.

    The MLP is learned with the model. It starts near zero, so that before training all output patches are near the mean
    of all patches.

    Args:
        metric: (B, N, D) float32, the patches.
        r: patches to remove; N - r is the number of the MLP's outputs.
        context: provides the MLP.

    Returns:
        A mixture of N patches into N - r.
    """
    assert context.pooling is not None
    return softmax_mixture(context.pooling(metric))


class Slimming(nn.Module):
    """Scores of patches for output patches by an MLP.

    Args:
        dim: width of a patch.
        count: number of output patches M.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, hidden(dim)), nn.Linear(hidden(dim), count)
        self.scale = nn.Parameter(torch.ones(1))
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, N, D) float32 -> (B, M, N) float32."""
        score = self.fc2(F.gelu(self.fc1(self.norm(x.to(self.scale.dtype)))))
        found: Tensor = (self.scale * score).mT.float()
        return found


def hidden(dim: int) -> int:
    """Width of the hidden layer."""
    return max(int(HIDDEN * dim), 1)


def macs(counts: Counts) -> int:
    """MACs of the mixtures."""
    return (counts.patches - counts.removed) * counts.patches * counts.embed_dim


def linear_macs(counts: Counts) -> int:
    """MACs of the MLP."""
    left = counts.patches - counts.removed
    return counts.patches * hidden(counts.embed_dim) * (counts.embed_dim + left)


SIT = Merger(sit, macs=macs, metric="tokens", pooling=Slimming, linear=linear_macs)
