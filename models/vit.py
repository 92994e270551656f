"""The Vision Transformer with token merging. Parameter names are those of timm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .attention import attend, split_heads
from .images import check_images
from .merging import Tokens, effective_schedule, initial_tokens, size_bias
from .merging.contract import Grid, Removal
from .merging.layer import Attended, MergeLayer, Scores
from .merging.schedule import Plan, fixed_removals, tokens_left
from .settings.vit import EncoderSettings, ViTSettings
from .stem import PatchStem


class Attention(nn.Module):
    """Multi-head self-attention, with an additive bias on the keys."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, T, D) and bias (B, 1, 1, T) -> attended (B, T, D), queries, keys and values (B, heads, T, head_dim)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return self.proj(attend(q, k, v, bias)), q, k, v


class Block(nn.Module):
    """A transformer block: attention, merging, MLP.

    Args:
        dim: width of a token.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP divided by `dim`.
        merge: the merging between attention and MLP.
        qkv_bias: whether the projections to queries, keys and values have biases.
        drop_path: the rate of stochastic depth.
        prop_attn: whether attention is weighted by token size.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        merge: MergeLayer,
        *,
        qkv_bias: bool,
        drop_path: float,
        prop_attn: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.merge, self.prop_attn = merge, prop_attn

    def forward(self, x: Tensor, tokens: Tokens, r: Removal) -> tuple[Tensor, Tokens]:
        """Tokens x (B, T, D) and their state -> tokens (B, T - r, D) and their state."""
        source, bias = self.norm1(x), size_bias(tokens, proportional=self.prop_attn)
        attended, q, k, v = self.attn(source, bias)
        x = x + self.drop_path(attended)
        x, tokens = self.merge(x, tokens, r, Attended(source, lambda: Scores(q, k, bias, v=v)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x, tokens


class MergingEncoder(nn.Module):
    """Base of our transformers: their sizes, and the number of patches that each block merges away.

    Subclasses are models of the protocol `interface.MergingModel`.

    Args:
        settings: the encoder's options.

    Attributes:
        schedule: the number of patches that each block removes; Adaptive where it depends on the image. It may be set
            at any time; a block never removes more than the method can.
    """

    prefix = 1  # the class token

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        s = settings
        self.img_size, self.in_chans, self.num_classes = s.img_size, s.in_chans, s.classes
        self.embed_dim, self.depth = s.embed_dim, s.depth
        self.grid: Grid = s.grid
        self.merger = s.merge.merger()
        self.schedule = s.schedule()

    @property
    def schedule(self) -> list[Removal]:
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Plan) -> None:
        if len(schedule) != self.depth:
            raise ValueError(f"schedule has {len(schedule)} entries; the model has {self.depth} blocks")
        self._schedule = effective_schedule(schedule, prod(self.grid), self.merger, self.grid)

    def new_block(self, settings: EncoderSettings, number: int) -> Block:
        """Returns a new transformer block with its merging, for one of the numbers 0 to depth - 1."""
        s = settings
        leaves = prod(s.grid) - sum(fixed_removals(self.schedule)[: number + 1])
        merge = MergeLayer(
            merger=self.merger,
            metric=s.merge.compared_by(),
            prefix=self.prefix,
            depth=number / s.depth,
            dim=s.embed_dim,
            head_dim=s.embed_dim // s.num_heads,
            leaves=leaves if self.schedule[number] else None,
        )
        return Block(
            s.embed_dim,
            s.num_heads,
            s.mlp_ratio,
            merge,
            qkv_bias=s.qkv_bias,
            drop_path=s.drop_path_rate * number / max(s.depth - 1, 1),
            prop_attn=s.merge.prop_attn,
        )

    def tokens_per_block(self) -> list[int]:
        """The number of tokens that leave each block, the class token included; empty where it depends on the image."""
        return tokens_left(self.prefix + prod(self.grid), self.schedule)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Images (B, C, H, W) -> normalised tokens (B, T, D), class token first, and their state."""
        raise NotImplementedError

    def trace(self, images: Tensor) -> Tokens:
        """Images (B, C, H, W) -> the state of the tokens after the last block."""
        _, tokens = self.forward_features(images)
        return tokens


class VisionTransformer(MergingEncoder):
    """A ViT (Dosovitskiy et al., 2021) whose blocks merge tokens.

    Args:
        settings: the encoder's options.
        patch_embed: maps images to a feature map (B, embed_dim, rows, columns) with one vector per patch.
    """

    head_names = ("head",)

    def __init__(self, settings: EncoderSettings, patch_embed: nn.Module) -> None:
        super().__init__(settings)
        s = settings
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, s.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + prod(self.grid), s.embed_dim))
        self.blocks = nn.ModuleList(self.new_block(s, i) for i in range(s.depth))
        self.norm = nn.LayerNorm(s.embed_dim, eps=1e-6)
        self.head = nn.Linear(s.embed_dim, s.classes)
        self._init_weights()

    def _init_weights(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in [*self.blocks.modules(), self.head]:
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tokens or position embeddings (timm's convention)."""
        return {"cls_token", "pos_embed"}

    def encode(self, features: Tensor, schedule: Sequence[Removal] | None = None) -> tuple[Tensor, Tokens]:
        """The stem's feature map (B, D, rows, columns) -> normalised tokens (B, T, D) and their state.

        Args:
            features: the stem's feature map.
            schedule: the number of patches that each block removes in this call; None: the model's own.
        """
        x = rearrange(features, "b d h w -> b (h w) d")
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        tokens = initial_tokens(x, self.grid)
        for block, r in zip(self.blocks, self.schedule if schedule is None else schedule, strict=True):
            x, tokens = block(x, tokens, r)
        return self.norm(x), tokens

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the stem's feature map (B, D, H / patch, W / patch).

        Raises:
            ValueError: images of another size than the model's.
        """
        check_images(images, self)
        return self.patch_embed(images)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Images (B, C, H, W) -> normalised tokens (B, T, D), class token first, and their state."""
        return self.encode(self.embed(images))

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) -> logits (B, classes), from the class token."""
        return self.head(x[:, 0])

    def forward(self, images: Tensor, schedule: Sequence[Removal] | None = None) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes); see `encode` for `schedule`."""
        x, _ = self.encode(self.embed(images), schedule)
        return self.forward_head(x)


def build_vit(settings: ViTSettings) -> VisionTransformer:
    """A Vision Transformer with a patch stem."""
    return VisionTransformer(settings, PatchStem(settings.in_chans, settings.embed_dim, settings.patch_size))
