"""The Conformer: a CNN and a transformer side by side that feed each other, here with token merging.

Peng, Huang, Gu, Xie, Wang, Jiao, Ye: Conformer: Local Features Coupling Global Representations for Visual Recognition.
ICCV 2021. Parameter names and shapes are those of the official checkpoints.

Merging is ours. The transformer's tokens are merged as in a ViT; what the two halves say to each other goes by the
assignment: on the way up each patch of the map gets its token (a gather), on the way down each token the mean of the
map over its patches, as the published pooling is the mean over a patch. The convolutional half stays as it is.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from .merging import Assignment, Tokens, apply_assignment, initial_tokens, unmerge
from .merging.layer import MergeLayer
from .merging.tokens import Soft
from .vit import Block, EncoderSettings, MergingEncoder

EXPANSION = 4  # a bottleneck's channels over those of its 3x3 convolution
STAGES = 3  # of equally many blocks; the map halves and the channels double from each to the next


class ConformerSettings(EncoderSettings):
    """A Conformer, with token merging in its transformer if asked for. The default is Conformer-S/16."""

    name: Literal["conformer"] = "conformer"
    patch_size: int = Field(16, gt=0, le=16384, description="pixels a side of a patch; a multiple of 4 stem_stride")
    channel_ratio: int = Field(4, gt=0, le=1024, description="channels of the first stage over base_channel")
    base_channel: int = Field(64, gt=0, le=65536, description="channels of the stem")
    stem_stride: Literal[1, 2, 4] = Field(
        4, description="pixels a side of the first map's cells: 4 as published, 2 without the pooling, 1 for 32 px"
    )
    embed_dim: int = Field(384, gt=0, le=65536, description="width of a token")
    depth: int = Field(12, gt=0, le=1000, description="transformer blocks, three stages of as many")
    num_heads: int = Field(6, gt=0, le=1024, description="attention heads; they divide embed_dim")

    @model_validator(mode="after")
    def _stages_fit(self) -> ConformerSettings:
        # The maps of the three stages have cells of stem_stride, 2 and 4 times that, and a patch is made of whole ones.
        if self.patch_size % (unit := 4 * self.stem_stride):
            near = _multiples(self.patch_size, unit)
            raise ValueError(
                f"patch_size = {self.patch_size}: must be a multiple of 4 x stem_stride ({unit}); use {near}"
            )
        if self.depth % STAGES:
            near = _multiples(self.depth, STAGES)
            raise ValueError(f"depth = {self.depth}: must be a multiple of {STAGES}, the stages; use {near}")
        if self.base_channel * self.channel_ratio % EXPANSION:
            near = _multiples(self.base_channel, EXPANSION)
            raise ValueError(
                f"base_channel = {self.base_channel}: x channel_ratio it must be a multiple of {EXPANSION}; use {near}"
            )
        return self


def _multiples(value: int, unit: int) -> str:
    """The multiples of `unit` next to `value`, in words."""
    below = value - value % unit
    return " or ".join(str(n) for n in (below, below + unit) if n)


class ConvBlock(nn.Module):
    """A residual bottleneck (He et al., 2016): 1x1, 3x3, 1x1, each with BatchNorm and ReLU.

    Args:
        in_chans: channels that enter.
        out_chans: channels that leave; a fourth of them within.
        stride: of the 3x3 convolution, and of the residual.
        project: whether the residual is a 1x1 convolution; else the identity.
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
        """x (B, C, H, W), and what is added to the bottleneck before its 3x3 convolution, (B, C_out / 4, H, W).

        Returns:
            (B, C_out, H / stride, W / stride), and the bottleneck after it, a fourth as wide.
        """
        residual = self.residual_bn(self.residual_conv(x)) if self.project else x
        x = self.act(self.bn1(self.conv1(x)))
        inner = self.act(self.bn2(self.conv2(x if beside is None else x + beside)))
        return self.act(self.bn3(self.conv3(inner)) + residual), inner


class Squeeze(nn.Module):
    """The way down, map to tokens: 1x1 convolution, mean over each token's patches, norm, GELU (FCU, section 3.2).

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
        """The map (B, C, H, W) and the state of the patches alone -> (B, T - P, D)."""
        x = rearrange(self.sample_pooling(self.conv_project(x)), "b d h w -> b (h w) d")
        return self.act(self.ln(mean_by_token(x, patches)))


class Expand(nn.Module):
    """The way up, tokens to map: 1x1 convolution, a gather, BatchNorm, ReLU, each patch as large as its cells.

    Tokens are projected before the gather, while they are few; BatchNorm sees the map, as published.

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
        """Tokens without the prefix (B, T - P, D) and their state -> (B, C, rows x stride, columns x stride)."""
        x = rearrange(self.conv_project(rearrange(x, "b t d -> b d t 1")), "b c t 1 -> b t c")
        x = unmerge(x, patches) if patches.merged else x
        x = rearrange(x, "b (h w) c -> b c h w", h=self.grid[0])
        return F.interpolate(self.act(self.bn(x)), scale_factor=float(self.stride))


class ConvTransBlock(nn.Module):
    """One step of both halves: convolutions, down to the tokens, transformer block, up to the map, convolutions.

    Args:
        cnn_block, fusion_block: the convolutional half.
        squeeze_block, expand_block: the ways down and up.
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

    def forward(self, x: Tensor, x_t: Tensor, tokens: Tokens, r: int, prefix: int) -> tuple[Tensor, Tensor, Tokens]:
        """The map (B, C, H, W), tokens (B, T, D) and their state -> the same, r tokens fewer."""
        x, inner = self.cnn_block(x)
        down = self.squeeze_block(inner, patches_alone(tokens, prefix))
        # The class token has no place on the map: to it its own value is added, as published.
        down = torch.cat([x_t[:, :prefix], down], dim=1)
        x_t, tokens = self.trans_block(x_t + down, tokens, r)
        up = self.expand_block(x_t[:, prefix:], patches_alone(tokens, prefix))
        x, _ = self.fusion_block(x, up)
        return x, x_t, tokens


class Conformer(MergingEncoder):
    """A Conformer whose transformer may merge tokens.

    `forward` is the sum of both heads, by which it predicts; `forward_heads` is for training, where both learn.
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
        self.trans_1 = _trans_block(s, 0)
        for i in range(1, s.depth):
            stage, first = i // per_stage, i % per_stage == 0
            channels, stride = width << stage, cells >> stage
            last = i == s.depth - 1
            block = ConvTransBlock(
                ConvBlock(channels // 2 if first else channels, channels, 2 if first else 1, project=first),
                ConvBlock(channels, channels, 2 if last else 1, project=last),
                Squeeze(channels // EXPANSION, s.embed_dim, stride),
                Expand(s.embed_dim, channels // EXPANSION, stride, s.grid),
                _trans_block(s, i),
            )
            self.add_module(f"conv_trans_{i + 1}", block)

        self.trans_norm = nn.LayerNorm(s.embed_dim)
        self.trans_cls_head = nn.Linear(s.embed_dim, s.num_classes)
        self.conv_cls_head = nn.Linear(width << (STAGES - 1), s.num_classes)
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
        """Parameters that are tokens, not weights (timm's convention)."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for learning rates that decay with depth (timm's convention): both halves of a step are one."""
        blocks = [(r"^(?:conv|trans|conv_trans)_(\d+)\.", None), (r"^trans_norm", (99999,))]  # with the block before it
        return {"stem": r"^(?:cls_token|conv1|bn1|trans_patch_conv)", "blocks": blocks}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tokens]:
        """Images (B, C, H, W) -> the last map (B, C', h, w), normalised tokens (B, T, D) and their state.

        Raises:
            ValueError: images of another size than the model's.
        """
        if images.shape[1:] != (self.in_chans, self.img_size, self.img_size):
            wanted = (self.in_chans, self.img_size, self.img_size)
            raise ValueError(f"images are {tuple(images.shape[1:])}; the model takes {wanted} (in_chans, img_size)")
        base = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        x, _ = self.conv_1(base)
        x_t = rearrange(self.trans_patch_conv(base), "b d h w -> b (h w) d")
        x_t = torch.cat([self.cls_token.expand(x_t.shape[0], -1, -1), x_t], dim=1)
        x_t, tokens = self.trans_1(x_t, initial_tokens(x_t, self.grid), self.schedule[0])
        for i, r in enumerate(self.schedule[1:], start=2):
            x, x_t, tokens = self.get_submodule(f"conv_trans_{i}")(x, x_t, tokens, r, self.prefix)
        return x, self.trans_norm(x_t), tokens

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Images (B, C, H, W) -> the transformer's normalised tokens (B, T, D), class token first, and their state."""
        _, x_t, tokens = self.encode(images)
        return x_t, tokens

    def forward_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> logits of the convolutional head and of the transformer's, (B, classes) each."""
        x, x_t, _ = self.encode(images)
        return self.conv_cls_head(x.mean(dim=(2, 3))), self.trans_cls_head(x_t[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        conv, trans = self.forward_heads(images)
        return conv + trans


def patches_alone(tokens: Tokens, prefix: int) -> Tokens:
    """The state without its `prefix` leading tokens, which nothing merges with."""
    soft = tokens.soft
    if soft is not None:
        soft = Soft(soft.share[:, prefix:, prefix:], soft.active - prefix)
    return Tokens(tokens.index[:, prefix:] - prefix, tokens.size[:, prefix:], tokens.grid, soft, tokens.input_grid)


def mean_by_token(x: Tensor, patches: Tokens) -> Tensor:
    """Each token's mean over its patches: (B, N, D) and the state of the patches alone -> (B, T, D).

    A patch that `topk` pruned counts with the token that stands for it on the map. In a soft state: the mean by shares.
    """
    if patches.soft is not None:
        size = patches.size.clamp(min=1e-6).unsqueeze(-1)  # a source that was given away whole has nothing left
        return (patches.soft.share.mT.to(x.dtype) @ x) / size
    if not patches.merged:
        return x
    assignment = Assignment(patches.index, patches.size.shape[1])
    return apply_assignment(x, initial_tokens(x), assignment, prefix=0)[0]


def _trans_block(s: ConformerSettings, i: int) -> Block:
    """Transformer block number i, the first is 0."""
    merge = MergeLayer(
        s.merge.merger(), s.merge.compared_by(), Conformer.prefix, i / s.depth, s.embed_dim, s.embed_dim // s.num_heads
    )
    rate = s.drop_path_rate * i / max(s.depth - 1, 1)
    return Block(s.embed_dim, s.num_heads, s.mlp_ratio, s.qkv_bias, rate, merge, s.merge.prop_attn)
