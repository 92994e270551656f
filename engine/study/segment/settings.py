"""The settings of tools/segment.py: a pretrained model, images with masks, the probe, and the ways of merging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from engine.data.masks import MASKED
from engine.settings.schema import one_of
from engine.study.zeroshot.ways import WaysSettings
from models.settings import Settings

if TYPE_CHECKING:  # a type checker cannot follow unions that are made when the module is imported
    Source: TypeAlias = Any
else:
    Source = one_of(MASKED)


class StageSettings(Settings):
    """A CNN stage, and how it is trained."""

    block: Literal["convnext", "residual"] = Field("residual", description="kind of block")
    depth: int = Field(1, ge=0, le=1000, description="number of blocks; 0: two linear layers for each patch")
    dim: int = Field(96, gt=0, le=65536, description="channels")
    layer_scale: float = Field(0.1, gt=0, le=1000, description="initial scale of each block's residual")
    dropout: float = Field(0.3, ge=0, lt=1, description="share of the maps' channels that are dropped in training")
    epochs: int = Field(30, ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(16, ge=1, le=100_000, description="maps in a step")
    lr: float = Field(1e-3, gt=0, le=100, description="greatest learning rate")
    model_lr: float | None = Field(
        None,
        gt=0,
        le=100,
        description="that of the model, which is trained together with the stage; null: it is frozen",
    )
    weight_decay: float = Field(0.05, ge=0, le=100, description="AdamW's, of all parameters")
    seed: int = Field(0, ge=0, lt=2**63, description="decides its initial weights, dropout, and the order of images")


class ProbeSettings(Settings):
    """A classifier of patches: which features it reads, and how it is fitted."""

    blocks: list[Annotated[int, Field(ge=1, le=1000)]] | None = Field(
        None, min_length=1, description="blocks whose maps it reads, side by side, counted from 1; null: the last"
    )
    grid: int | None = Field(
        None, ge=1, le=4096, description="rows and columns to which maps are enlarged or averaged; null: as they are"
    )
    l2: float = Field(1e-3, ge=0, le=1e6, description="weight of half the sum of its squared weights")
    patches: int = Field(
        100_000,
        ge=1,
        le=10**9,
        description="most patches to fit, kept in memory: equally many of each image; for a CNN stage, whole images; "
        "all of them where the model is trained too",
    )
    steps: int = Field(200, ge=1, le=100_000, description="iterations of L-BFGS at most")
    cnn: StageSettings | None = Field(
        None, description="a CNN stage in place of the linear classifier, to which l2 and steps belong; null: none"
    )

    def deciding(self) -> dict[str, Any]:
        """Returns the settings that decide what is fitted; those that came later only where they are given."""
        unused: dict[str, Any] = {"grid": self.grid is None}
        if self.cnn is None:
            unused["cnn"] = True
        else:
            frozen = self.cnn.model_lr is None
            unused |= {"l2": True, "steps": True, "patches": not frozen, "cnn": {"model_lr": frozen}}
        return self.model_dump(mode="json", exclude=unused)


class SegmentSettings(WaysSettings):
    """A comparison by classes of pixels."""

    data: Source = Field(
        description="images with masks: planted compositions of photographs, or a folder of images and one of masks"
    )
    probe: ProbeSettings = Field(ProbeSettings(), description="the classifier of patches")

    @model_validator(mode="after")
    def _in_order(self) -> SegmentSettings:
        blocks = self.probe.blocks or []
        if len(set(blocks)) < len(blocks) or blocks != sorted(blocks):
            raise ValueError(f"probe.blocks = {blocks}: must be different numbers, in order")
        return self
