"""Bridges: merged tokens -> feature map, on the grid of the patches or on the smaller grid that merging kept."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .merging import Assignment, Tokens, apply_assignment, initial_tokens, log_size, unmerge


class Bridge(nn.Module):
    """Puts merged tokens back onto the grid of the patches.

    The map is piecewise constant, since merged patches share a token: a 3x3 convolution would see no structure inside
    such a cluster. Therefore the stem's features from before merging are added, and an embedding of log size, which
    tells how many patches a token stands for. Tokens are projected before the gather, while they are few.

    Args:
        embed_dim: width of tokens and of the stem's features.
        dim: channels of the map.
        stride: patches per side of a cell of the map; a cell is the mean of its patches.
        skip: whether the stem's features are added.
    """

    def __init__(self, embed_dim: int, dim: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Linear(embed_dim, dim)
        self.size_embed = nn.Linear(1, dim, bias=False)  # log 1 = 0: nothing is added to an unmerged token
        self.skip = nn.Conv2d(embed_dim, dim, 1, bias=False) if skip else None

    def forward(self, x: Tensor, tokens: Tokens, features: Tensor, prefix: int) -> Tensor:
        """Tokens (B, T, D), their state and the stem's map (B, D, H, W) -> (B, dim, H / stride, W / stride)."""
        projected = self.proj(x) + self.size_embed(log_size(tokens).unsqueeze(-1))
        grid = rearrange(unmerge(projected, tokens, prefix), "b (h w) c -> b c h w", h=features.shape[2])
        if self.stride > 1:
            grid = F.avg_pool2d(grid, self.stride)
            features = F.avg_pool2d(features, self.stride)
        return grid if self.skip is None else grid + self.skip(features)


class DirectMap(Bridge):
    """Uses tokens that merging left on a grid as the map, which is smaller. Parameter names are those of Bridge.

    The stem's features are averaged over the patches of each token.

    Args:
        embed_dim: width of tokens and of the stem's features.
        dim: channels of the map.
    """

    def __init__(self, embed_dim: int, dim: int) -> None:
        super().__init__(embed_dim, dim, stride=1, skip=True)

    def forward(self, x: Tensor, tokens: Tokens, features: Tensor, prefix: int) -> Tensor:
        """Tokens (B, T, D), their state and the stem's map (B, D, H, W) -> (B, dim, *tokens.grid)."""
        rows, columns = tokens.grid
        projected = self.proj(x[:, prefix:]) + self.size_embed(log_size(tokens)[:, prefix:].unsqueeze(-1))

        patches = rearrange(features, "b d h w -> b (h w) d")
        members = Assignment(tokens.index[:, prefix:] - prefix, rows * columns)
        means, _ = apply_assignment(patches, initial_tokens(patches), members, prefix=0)
        projected, means = (rearrange(t, "b (h w) c -> b c h w", h=rows) for t in (projected, means))
        return projected + self.skip(means)
