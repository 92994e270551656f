"""The settings of tools/segment.py: a pretrained ViT, images with masks, the probe, and the ways of merging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, model_validator

from engine.data.masks import MASKED
from engine.settings.schema import one_of
from engine.study.zeroshot.ways import WaysSettings
from models.settings import Settings

if TYPE_CHECKING:  # a type checker cannot follow unions that are made when the module is imported
    Source: TypeAlias = Any
else:
    Source = one_of(MASKED)


class ProbeSettings(Settings):
    """A linear classifier of patches: which features it reads, and how it is fitted."""

    blocks: list[Annotated[int, Field(ge=1, le=1000)]] | None = Field(
        None, min_length=1, description="blocks whose maps it reads, side by side, counted from 1; null: the last"
    )
    l2: float = Field(1e-3, ge=0, le=1e6, description="weight of half the sum of its squared weights")
    patches: int = Field(
        100_000, ge=1, le=10**9, description="most patches to fit, as many of each image; kept in memory"
    )
    steps: int = Field(200, ge=1, le=100_000, description="iterations of L-BFGS at most")


class SegmentSettings(WaysSettings):
    """A comparison by classes of pixels."""

    data: Source = Field(
        description="images with masks: planted compositions of photographs, or a folder of images and one of masks"
    )
    probe: ProbeSettings = Field(ProbeSettings(), description="the linear classifier")

    @model_validator(mode="after")
    def _of_timm(self) -> SegmentSettings:
        if self.model.name != "timm":
            raise ValueError(
                f"model.name = {self.model.name}:{self.model.arch!r}: gives no maps of its blocks; choose timm:NAME"
            )
        blocks = self.probe.blocks or []
        if len(set(blocks)) < len(blocks) or blocks != sorted(blocks):
            raise ValueError(f"probe.blocks = {blocks}: must be different numbers, in order")
        return self
