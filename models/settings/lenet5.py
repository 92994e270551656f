"""Settings of LeNet-5."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from . import ModelSettings


class LeNet5Settings(ModelSettings):
    """LeNet-5, for any image size that leaves a feature map: at least 16 px, or 4 px with padding."""

    default_classes: ClassVar[int] = 10

    name: Literal["lenet5"] = "lenet5"
    img_size: int = Field(32, gt=0, le=16384, description="height and width of the image, pixels")
    padding: int = Field(
        0, ge=0, le=2, description="zeros around the map before each convolution: 0 as published, 2 for small images"
    )

    @model_validator(mode="after")
    def _leaves_a_map(self) -> LeNet5Settings:
        if self.sides[1] < 1:
            least = 16 - 6 * self.padding  # 16, 10 or 4: leaves one pixel
            raise ValueError(
                f"img_size = {self.img_size}: two convolutions with padding {self.padding} leave no feature map; "
                f"use {least} or more" + (", or padding: 2" if self.padding < 2 and self.img_size >= 4 else "")
            )
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """Side of the feature map after the first and after the second pooling, pixels."""
        first = _after(self.img_size, self.padding)
        return first, _after(first, self.padding)


def _after(side: int, padding: int) -> int:
    """Side of the feature map after a 5x5 convolution and 2x2 pooling."""
    return (side + 2 * padding - 4) // 2
