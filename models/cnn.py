"""Convolutional blocks. Both are a residual around a stack of convolutions, and start small beside the identity."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, 1x1 to four times the width, GELU, 1x1 back, scaled (Liu et al., 2022).

    Args:
        dim: channels.
        layer_scale: initial scale of the residual.
    """

    def __init__(self, dim: int, layer_scale: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(4 * dim, dim, 1)
        self.gamma = nn.Parameter(torch.full((dim, 1, 1), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.fc2(self.act(self.fc1(self.norm(self.conv_dw(x)))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm (He et al., 2016), the second norm's scale starting small.

    The ReLU stands inside the residual, not after the sum, so that a small residual is nearly the identity.

    Args:
        dim: channels.
        layer_scale: initial scale of the residual.
    """

    def __init__(self, dim: int, layer_scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        nn.init.constant_(self.bn2.weight, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


CONV_BLOCKS: dict[str, type[nn.Module]] = {"convnext": ConvNeXtBlock, "residual": ResidualBlock}
