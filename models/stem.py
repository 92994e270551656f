"""Stems: image -> feature map with one vector per patch, (B, C, H, W) -> (B, D, H / patch, W / patch)."""

from __future__ import annotations

from torch import Tensor, nn


class PatchStem(nn.Module):
    """ViT's patch embedding: one convolution whose kernel and stride are the patch (Dosovitskiy et al., 2021)."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class ConvStem(nn.Module):
    """A 3x3 convolution at full resolution, then one of stride 2 for each halving, then a 1x1 to the token width.

    After Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021; channels double as resolution
    halves. The convolution at full resolution is an addition: images of 32 px should not lose resolution at once.

    Raises:
        ValueError: a patch size that is not a power of two.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        widths = self.widths(embed_dim, patch_size)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            chans = widths[i - 1] if i else in_chans
            layers += [
                nn.Conv2d(chans, width, 3, stride=2 if i else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)

    @staticmethod
    def widths(embed_dim: int, patch_size: int) -> list[int]:
        """Channels of each 3x3 convolution, starting with the one at full resolution.

        Raises:
            ValueError: a patch size that is not a power of two.
        """
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings:
            raise ValueError(f"patch_size = {patch_size}: a conv stem needs a power of two; use one, or stem: patch")
        return [max(embed_dim >> (halvings - i), 8) for i in range(halvings + 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.convs(x))


STEMS: dict[str, type[nn.Module]] = {"patch": PatchStem, "conv": ConvStem}
