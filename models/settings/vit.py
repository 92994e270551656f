"""Settings of the Vision Transformer, and of the encoder that it shares with the hybrid and the Conformer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..merging.contract import Grid, Removal
from ..merging.settings import MergeSettings
from . import ModelSettings


class EncoderSettings(ModelSettings):
    """The options of the transformer encoder, which `vit`, `hybrid` and `conformer` share."""

    patch_size: int = Field(16, gt=0, le=16384, description="height and width of a patch, pixels")
    embed_dim: int = Field(768, gt=0, le=65536, description="width of a token")
    depth: int = Field(12, gt=0, le=1000, description="transformer blocks")
    num_heads: int = Field(12, gt=0, le=1024, description="attention heads; must divide embed_dim")
    mlp_ratio: float = Field(4.0, gt=0, le=100, description="hidden width of the MLP divided by embed_dim")
    qkv_bias: bool = Field(True, description="bias in the query, key and value projections")
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block, linear from 0")
    merge: MergeSettings = Field(MergeSettings(), description="token merging")

    @model_validator(mode="after")
    def _fits(self) -> EncoderSettings:
        if self.img_size % self.patch_size:
            below = self.img_size - self.img_size % self.patch_size
            near = " or ".join(str(n) for n in (below, below + self.patch_size) if n)
            raise ValueError(f"img_size = {self.img_size}: not divisible by patch_size {self.patch_size}; use {near}")
        if self.embed_dim % self.num_heads:
            fits = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0]
            near = min(fits, key=lambda n: abs(n - self.num_heads))
            raise ValueError(f"embed_dim = {self.embed_dim}: not divisible by num_heads {self.num_heads}; use {near}")
        if int(self.embed_dim * self.mlp_ratio) == 0:
            raise ValueError(f"mlp_ratio = {self.mlp_ratio}: leaves the MLP without hidden units; use a larger value")
        if self.merge.solved:
            self.schedule()
        return self

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""
        side = self.img_size // self.patch_size
        return side, side

    def schedule(self) -> list[Removal]:
        """The number of patches that each block removes: as many as requested, or as the method can; Adaptive where it
        depends on the image."""
        return self.merge.schedule(self.depth, self.grid)


class ViTSettings(EncoderSettings):
    """A Vision Transformer, with token merging if `merge` requests it."""

    name: Literal["vit"] = "vit"
