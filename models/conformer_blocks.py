"""The parts of a Conformer: its convolutional blocks, and the exchange between feature map and merged tokens.

Merging is an addition to the published model. The exchange follows the assignment: on the way up each patch of the map
receives its token (a gather), and on the way down each token receives the mean of the map over its patches, as the
published pooling is the mean over a patch. The convolutional half is unchanged.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .merging import Assignment, Tokens, apply_assignment, initial_tokens, unmerge
from .merging.contract import Removal
from .merging.tokens import Soft
from .settings.conformer import EXPANSION
from .vit import Block


class ConvBlock(nn.Module):
    """A residual bottleneck (He et al., 2016): 1x1, 3x3, 1x1, each with BatchNorm and ReLU.

    Args:
        in_chans: input channels.
        out_chans: output channels; the bottleneck has a fourth of them.
        stride: of the 3x3 convolution and of the residual.
        project: whether the residual is a 1x1 convolution instead of the identity.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        inner = out_chans // EXPANSION
        self.conv1 = nn.Conv2d(in_chans, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=1e-6)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, eps=1e-6)
        self.conv3 = nn.Conv2d(inner, out_chans, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chans, eps=1e-6)
        self.act = nn.ReLU()
        self.project = project
        if project:
            self.residual_conv = nn.Conv2d(in_chans, out_chans, 1, stride=stride, bias=False)
            self.residual_bn = nn.BatchNorm2d(out_chans, eps=1e-6)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Applies the bottleneck.

        Args:
            x: (B, C, H, W).
            beside: added to the bottleneck before its 3x3 convolution, (B, C_out / 4, H, W); None: nothing.

        Returns:
            (B, C_out, H / stride, W / stride), and the output of the 3x3 convolution, a fourth as wide.
        """
        residual = self.residual_bn(self.residual_conv(x)) if self.project else x
        x = self.act(self.bn1(self.conv1(x)))
        inner = self.act(self.bn2(self.conv2(x if beside is None else x + beside)))
        return self.act(self.bn3(self.conv3(inner)) + residual), inner


class Squeeze(nn.Module):
    """Feature map to tokens: 1x1 convolution, mean over each token's patches, norm, GELU (FCU, section 3.2).

    Args:
        channels: of the map.
        embed_dim: width of a token.
        stride: cells of the map per side of a patch.
    """

    def __init__(self, channels: int, embed_dim: int, stride: int) -> None:
        super().__init__()
        self.conv_project = nn.Conv2d(channels, embed_dim, 1)
        self.sample_pooling = nn.AvgPool2d(stride)
        self.ln = nn.LayerNorm(embed_dim, eps=1e-6)
        self.act = nn.GELU()

    def forward(self, x: Tensor, patches: Tokens) -> Tensor:
        """The map (B, C, H, W) and the state without prefix tokens -> (B, T - P, D)."""
        x = rearrange(self.sample_pooling(self.conv_project(x)), "b d h w -> b (h w) d")
        return self.act(self.ln(mean_by_token(x, patches)))


class Expand(nn.Module):
    """Tokens to feature map: 1x1 convolution, a gather, BatchNorm, ReLU, upsampling to the cells of each patch.

    Tokens are projected before the gather, while they are few; BatchNorm is applied to the map, as published.

    Args:
        embed_dim: width of a token.
        channels: of the map.
        stride: cells of the map per side of a patch.
        grid: rows and columns of patches.
    """

    def __init__(self, embed_dim: int, channels: int, stride: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.stride, self.grid = stride, grid
        self.conv_project = nn.Conv2d(embed_dim, channels, 1)
        self.bn = nn.BatchNorm2d(channels, eps=1e-6)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, patches: Tokens) -> Tensor:
        """Tokens without prefix (B, T - P, D) and their state -> (B, C, rows x stride, columns x stride)."""
        x = rearrange(self.conv_project(rearrange(x, "b t d -> b d t 1")), "b c t 1 -> b t c")
        x = unmerge(x, patches) if patches.merged else x
        x = rearrange(x, "b (h w) c -> b c h w", h=self.grid[0])
        return F.interpolate(self.act(self.bn(x)), scale_factor=float(self.stride))


class ConvTransBlock(nn.Module):
    """One step of both halves: convolutions, map to tokens, transformer block, tokens to map, convolutions.

    Args:
        cnn_block, fusion_block: the convolutional half.
        squeeze_block: map to tokens.
        expand_block: tokens to map.
        trans_block: the transformer's block.
    """

    def __init__(
        self,
        cnn_block: ConvBlock,
        fusion_block: ConvBlock,
        squeeze_block: Squeeze,
        expand_block: Expand,
        trans_block: Block,
    ) -> None:
        super().__init__()
        self.cnn_block, self.fusion_block = cnn_block, fusion_block
        self.squeeze_block, self.expand_block = squeeze_block, expand_block
        self.trans_block = trans_block

    def forward(self, x: Tensor, x_t: Tensor, tokens: Tokens, r: Removal, prefix: int) -> tuple[Tensor, Tensor, Tokens]:
        """The map (B, C, H, W), tokens (B, T, D) and their state -> the same, with r tokens fewer."""
        x, inner = self.cnn_block(x)
        down = self.squeeze_block(inner, patches_alone(tokens, prefix))
        # The class token has no place on the map; its own value is added to it, as published.
        down = torch.cat([x_t[:, :prefix], down], dim=1)
        x_t, tokens = self.trans_block(x_t + down, tokens, r)
        up = self.expand_block(x_t[:, prefix:], patches_alone(tokens, prefix))
        x, _ = self.fusion_block(x, up)
        return x, x_t, tokens


def patches_alone(tokens: Tokens, prefix: int) -> Tokens:
    """The state without its `prefix` leading tokens, which never merge."""
    soft = tokens.soft
    if soft is not None:
        soft = Soft(soft.share[:, prefix:, prefix:], soft.active - prefix)
    left = tokens.left and tuple(count - prefix for count in tokens.left)
    return Tokens(
        tokens.index[:, prefix:] - prefix, tokens.size[:, prefix:], tokens.grid, soft, tokens.input_grid, left
    )


def mean_by_token(x: Tensor, patches: Tokens) -> Tensor:
    """Averages x over the patches of each token: (B, N, D) and the state without prefix tokens -> (B, T, D).

    A patch that `topk` pruned counts as a member of the token that it is shown as. In a soft state, the mean is
    weighted by shares.
    """
    if patches.soft is not None:
        members = patches.soft.share.sum(1).clamp(min=1e-6)  # a token that was given away completely, or masked, has 0
        return (patches.soft.share.mT.to(x.dtype) @ x) / members.unsqueeze(-1)
    if not patches.merged:
        return x
    assignment = Assignment(patches.index, patches.size.shape[1])
    return apply_assignment(x, initial_tokens(x), assignment, prefix=0)[0]
