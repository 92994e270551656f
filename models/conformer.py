"""The Conformer: a CNN and a transformer side by side that exchange features, here with token merging.

Peng, Huang, Gu, Xie, Wang, Jiao, Ye: Conformer: Local Features Coupling Global Representations for Visual Recognition.
ICCV 2021. Parameter names and shapes are those of the official checkpoints. How merging fits in is described in
conformer_blocks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .conformer_blocks import ConvBlock, ConvTransBlock, Expand, Squeeze
from .images import check_images
from .merging import Tokens, initial_tokens
from .merging.contract import Removal
from .settings.conformer import EXPANSION, STAGES, ConformerSettings
from .vit import MergingEncoder


class Conformer(MergingEncoder):
    """A Conformer whose transformer may merge tokens.

    `forward` returns the sum of both heads' logits, for prediction; `forward_heads` returns both, for training.
    """

    head_names = ("conv_cls_head", "trans_cls_head")

    def __init__(self, settings: ConformerSettings) -> None:
        super().__init__(settings)
        s = settings
        per_stage, width = s.depth // STAGES, s.base_channel * s.channel_ratio
        cells = s.patch_size // s.stem_stride  # per side of a patch, on the first stage's map

        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.embed_dim))
        self.conv1 = nn.Conv2d(
            s.in_chans, s.base_channel, 7, stride=1 if s.stem_stride == 1 else 2, padding=3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(s.base_channel)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if s.stem_stride == 4 else nn.Identity()

        self.conv_1 = ConvBlock(s.base_channel, width, project=True)
        self.trans_patch_conv = nn.Conv2d(s.base_channel, s.embed_dim, cells, cells)
        self.trans_1 = self.new_block(s, 0)
        for i in range(1, s.depth):
            stage, first = i // per_stage, i % per_stage == 0
            channels, stride = width << stage, cells >> stage
            last = i == s.depth - 1
            block = ConvTransBlock(
                ConvBlock(channels // 2 if first else channels, channels, 2 if first else 1, project=first),
                ConvBlock(channels, channels, 2 if last else 1, project=last),
                Squeeze(channels // EXPANSION, s.embed_dim, stride),
                Expand(s.embed_dim, channels // EXPANSION, stride, s.grid),
                self.new_block(s, i),
            )
            self.add_module(f"conv_trans_{i + 1}", block)

        self.trans_norm = nn.LayerNorm(s.embed_dim)
        self.trans_cls_head = nn.Linear(s.embed_dim, s.classes)
        self.conv_cls_head = nn.Linear(width << (STAGES - 1), s.classes)
        self._init_weights()

    def _init_weights(self) -> None:
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tokens (timm's convention)."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for learning rates that decay with depth (timm's convention); both halves of a step are one layer."""
        blocks = [(r"^(?:conv|trans|conv_trans)_(\d+)\.", None), (r"^trans_norm", (99999,))]  # with the block before it
        return {"stem": r"^(?:cls_token|conv1|bn1|trans_patch_conv)", "blocks": blocks}

    def encode(self, images: Tensor, schedule: Sequence[Removal] | None = None) -> tuple[Tensor, Tensor, Tokens]:
        """Images (B, C, H, W) -> the last map (B, C', h, w), normalised tokens (B, T, D) and their state.

        Args:
            images: (B, C, H, W).
            schedule: the number of patches that each block removes in this call; None: the model's own.

        Raises:
            ValueError: images of another size than the model's.
        """
        check_images(images, self)
        base = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        x, _ = self.conv_1(base)
        x_t = rearrange(self.trans_patch_conv(base), "b d h w -> b (h w) d")
        x_t = torch.cat([self.cls_token.expand(x_t.shape[0], -1, -1), x_t], dim=1)
        first, *others = self.schedule if schedule is None else schedule
        x_t, tokens = self.trans_1(x_t, initial_tokens(x_t, self.grid), first)
        for i, r in enumerate(others, start=2):
            x, x_t, tokens = self.get_submodule(f"conv_trans_{i}")(x, x_t, tokens, r, self.prefix)
        return x, self.trans_norm(x_t), tokens

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Images (B, C, H, W) -> the transformer's normalised tokens (B, T, D), class token first, and their state."""
        _, x_t, tokens = self.encode(images)
        return x_t, tokens

    def forward_heads(self, images: Tensor, schedule: Sequence[Removal] | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> logits of the convolutional head and of the transformer's, (B, classes) each."""
        x, x_t, _ = self.encode(images, schedule)
        return self.conv_cls_head(x.mean(dim=(2, 3))), self.trans_cls_head(x_t[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes)."""
        conv, trans = self.forward_heads(images)
        return conv + trans
