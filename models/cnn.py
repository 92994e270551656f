"""Convolutional blocks, whose residual branches are small at initialisation, a plain CNN of them, and LeNet-5."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from .images import check_images
from .settings.cnn import CNNModelSettings
from .settings.lenet5 import LeNet5Settings


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
    """Two 3x3 convolutions with BatchNorm (He et al., 2016), where the second norm has a small initial scale.

    There is no ReLU after the sum, so that a block with a small residual is nearly the identity.

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


class CNN(nn.Module):
    """A residual network for small images, after Section 4.2 of He et al. (2016).

    A 3x3 convolution at full resolution, then stages of residual blocks. Each stage but the first begins with a 3x3
    convolution of stride 2 that doubles the channels, so that a block costs the same in every stage.
    """

    head_names = ("head",)

    def __init__(self, settings: CNNModelSettings) -> None:
        super().__init__()
        s = settings
        self.img_size, self.in_chans, self.num_classes = s.img_size, s.in_chans, s.classes
        stages, chans = [], s.in_chans
        for number, depth in enumerate(s.depths):
            width = s.width * 2**number
            enter = [
                nn.Conv2d(chans, width, 3, stride=2 if number else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            stages.append(nn.Sequential(*enter, *(ResidualBlock(width, s.layer_scale) for _ in range(depth))))
            chans = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(chans)
        self.head = nn.Linear(chans, s.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes).

        Raises:
            ValueError: images of another size than the model's.
        """
        check_images(images, self)
        x = F.relu(self.norm(self.stages(images)))
        return self.head(x.mean(dim=(2, 3)))


class LeNet5(nn.Module):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998).

    In the form that is usual today: ReLU instead of the scaled tanh, max pooling instead of the trained mean, a second
    convolution that is connected to all channels of the first, and a linear layer instead of radial basis functions at
    the end. At 32 px without padding the feature maps have the paper's sizes (6 of 28 px, 16 of 10 px, 400 features);
    the first linear layer adapts to other sizes.
    """

    head_names = ("head",)

    def __init__(self, settings: LeNet5Settings) -> None:
        super().__init__()
        s = settings
        self.img_size, self.in_chans, self.num_classes = s.img_size, s.in_chans, s.classes
        self.conv1 = nn.Conv2d(s.in_chans, 6, 5, padding=s.padding)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=s.padding)
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * s.sides[1] ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, s.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes).

        Raises:
            ValueError: images of another size than the model's.
        """
        check_images(images, self)
        x = self.pool(self.act(self.conv1(images)))
        x = self.pool(self.act(self.conv2(x)))
        x = self.act(self.fc1(x.flatten(1)))
        return self.head(self.act(self.fc2(x)))
