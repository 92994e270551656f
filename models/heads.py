"""Classifiers that replace the one of a library's model: an MLP, or a linear layer on signed roots of features."""

from __future__ import annotations

from torch import Tensor, nn

from .settings.zoo import Head


class PowerNorm(nn.Module):
    """sign(x) sqrt(|x|), any shape (Perronnin, Sanchez and Mensink, Improving the Fisher Kernel, ECCV 2010).

    Pooled activations are skewed: a few large ones dominate a linear classifier, and the root reduces them. Computed as
    x / sqrt(|x| + eps), whose slope at 0 is finite.
    """

    def __init__(self, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs() + self.eps).sqrt()


class Standardised(nn.BatchNorm1d):
    """Standardises each of D features, (..., D), over images and tokens: BatchNorm without scale and shift."""

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


def new_head(kind: Head, features: int, num_classes: int, *, hidden: int, dropout: float, maps: bool) -> nn.Sequential:
    """Returns a classifier of pooled features (B, features), or of feature maps (B, features, H, W), which it pools.

    Args:
        kind: mlp: dropout, linear, ReLU, dropout, linear. power: signed roots of the features, standardised (by the
            statistics of the batch in training, by running statistics otherwise), dropout, linear.
        hidden: width of the mlp's hidden layer.
        maps: whether its inputs are feature maps.
    """
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if maps else []
    if kind == "power":
        layers = [PowerNorm(), Standardised(features), nn.Dropout(dropout)]
        return nn.Sequential(*pool, *layers, nn.Linear(features, num_classes))
    first = [nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()]
    return nn.Sequential(*pool, *first, nn.Dropout(dropout), nn.Linear(hidden, num_classes))
