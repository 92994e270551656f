"""Settings of the plain CNN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from . import ModelSettings


class CNNModelSettings(ModelSettings):
    """A convolution at full resolution, stages of residual blocks, a linear head."""

    name: Literal["cnn"] = "cnn"
    img_size: int = Field(32, gt=0, le=16384, description="height and width of the image, pixels")
    width: int = Field(16, gt=0, le=16384, description="channels of the first stage; they double in each further stage")
    depths: list[Annotated[int, Field(gt=0, le=1000)]] = Field(
        [2, 2, 2], min_length=1, max_length=12, description="residual blocks of each stage; stages halve the map"
    )
    layer_scale: float = Field(0.1, gt=0, le=1000, description="initial scale of each block's residual")

    @model_validator(mode="after")
    def _stages_halve(self) -> CNNModelSettings:
        if self.img_size % 2 ** (len(self.depths) - 1):
            halvings = len(self.depths) - 1
            raise ValueError(
                f"img_size = {self.img_size}: {len(self.depths)} stages halve it {halvings} times; "
                f"use a multiple of {2**halvings}, or fewer depths"
            )
        return self
