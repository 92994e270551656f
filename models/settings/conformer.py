"""Settings of the Conformer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .vit import EncoderSettings

EXPANSION = 4  # channels of a bottleneck divided by those of its 3x3 convolution
STAGES = 3  # with equal numbers of blocks; from each stage to the next the map halves and the channels double


class ConformerSettings(EncoderSettings):
    """A Conformer, with token merging in its transformer if `merge` requests it. The default is Conformer-S/16."""

    name: Literal["conformer"] = "conformer"
    patch_size: int = Field(16, gt=0, le=16384, description="side of a patch, pixels; a multiple of 4 x stem_stride")
    channel_ratio: int = Field(4, gt=0, le=1024, description="channels of the first stage divided by base_channel")
    base_channel: int = Field(64, gt=0, le=65536, description="channels of the stem")
    stem_stride: Literal[1, 2, 4] = Field(
        4, description="side of the first map's cells in pixels: 4 as published, 2 without pooling, 1 for 32 px images"
    )
    embed_dim: int = Field(384, gt=0, le=65536, description="width of a token")
    depth: int = Field(12, gt=0, le=1000, description="transformer blocks; a multiple of 3, the number of stages")
    num_heads: int = Field(6, gt=0, le=1024, description="attention heads; must divide embed_dim")

    @model_validator(mode="after")
    def _stages_fit(self) -> ConformerSettings:
        # The cells of the three stages' maps are 1, 2 and 4 times stem_stride wide, and must fit into a patch.
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
                f"base_channel = {self.base_channel}: times channel_ratio must be a multiple of {EXPANSION}; use {near}"
            )
        return self


def _multiples(value: int, unit: int) -> str:
    """The positive multiples of `unit` closest to `value`, for an error message."""
    below = value - value % unit
    return " or ".join(str(n) for n in (below, below + unit) if n)
