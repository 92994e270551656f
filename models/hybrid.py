"""The hybrid: stem -> ViT blocks that merge tokens -> bridge -> CNN stage -> two heads, summed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .bridge import Bridge, DirectMap
from .cnn import CONV_BLOCKS
from .merging import Tokens
from .merging.contract import Grid, Removal
from .merging.schedule import Plan
from .settings.hybrid import HybridSettings
from .stem import STEMS
from .vit import VisionTransformer


class ConvHead(nn.Module):
    """Bridge -> CNN stage -> mean -> norm -> linear layer. The linear layer is initialised to zero.

    Args:
        bridge: turns merged tokens into a feature map.
        stages: the CNN stage.
        dim: channels of the map.
        num_classes: classes.
    """

    def __init__(self, bridge: Bridge, stages: nn.Module, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bridge, self.stages = bridge, stages
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc = nn.Linear(dim, num_classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, tokens: Tokens, features: Tensor, prefix: int) -> Tensor:
        """Tokens (B, T, D), their state, the stem's map (B, D, H, W) -> logits (B, classes)."""
        grid = self.stages(self.bridge(x, tokens, features, prefix))
        return self.fc(self.norm(grid.mean(dim=(2, 3))))


class Hybrid(nn.Module):
    """A ViT with token merging and a CNN over the remaining tokens; the logits of both heads are added.

    `hybrid.vit` is a VisionTransformer: with a patch stem, a ViT's state dict can be loaded into it unchanged. The
    convolutional head is initialised to zero, so the hybrid then starts as that ViT with the same merging.

    Args:
        vit: the encoder, including its stem and its class-token head.
        conv_head: the convolutional half; None: the ViT alone.
    """

    def __init__(self, vit: VisionTransformer, conv_head: ConvHead | None) -> None:
        super().__init__()
        self.vit, self.conv_head = vit, conv_head
        self.img_size, self.in_chans, self.num_classes = vit.img_size, vit.in_chans, vit.num_classes
        self.head_names = ("vit.head",) if conv_head is None else ("vit.head", "conv_head.fc")

    @property
    def schedule(self) -> list[Removal]:
        """The number of patches that each block removes; Adaptive where it depends on the image. It may be set."""
        return self.vit.schedule

    @schedule.setter
    def schedule(self, schedule: Plan) -> None:
        self.vit.schedule = schedule

    @property
    def grid(self) -> Grid:
        """Rows and columns of the patches before merging."""
        return self.vit.grid

    def tokens_per_block(self) -> list[int]:
        """The number of tokens that leave each block, the class token included; empty where it depends on the image."""
        return self.vit.tokens_per_block()

    def trace(self, images: Tensor) -> Tokens:
        """Images (B, C, H, W) -> the state of the tokens after the last block."""
        return self.vit.trace(images)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Images (B, C, H, W) -> normalised tokens (B, T, D), class token first, and their state."""
        return self.vit.forward_features(images)

    def forward(self, images: Tensor, schedule: Sequence[Removal] | None = None) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes); see `VisionTransformer.encode` for `schedule`."""
        features = self.vit.embed(images)
        x, tokens = self.vit.encode(features, schedule)
        logits = self.vit.forward_head(x)
        if self.conv_head is not None:
            logits = logits + self.conv_head(x, tokens, features, self.vit.prefix)
        return logits


def build_hybrid(settings: HybridSettings) -> Hybrid:
    """A hybrid with the stem, bridge and CNN stage of its settings."""
    stem = STEMS[settings.stem](settings.in_chans, settings.embed_dim, settings.patch_size)
    vit = VisionTransformer(settings, stem)
    if settings.cnn is None:
        return Hybrid(vit, None)
    dim = settings.cnn.dim or settings.embed_dim
    if settings.bridge is None:
        bridge = DirectMap(settings.embed_dim, dim)
    else:
        bridge = Bridge(settings.embed_dim, dim, settings.bridge.stride, settings.bridge.skip)
    block = CONV_BLOCKS[settings.cnn.block]
    stages = nn.Sequential(*[block(dim, settings.cnn.layer_scale) for _ in range(settings.cnn.depth)])
    return Hybrid(vit, ConvHead(bridge, stages, dim, settings.classes))
