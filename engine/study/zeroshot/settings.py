"""The settings of tools/zeroshot.py: a pretrained model, labelled images, and the ways of merging to compare."""

from __future__ import annotations

from pydantic import Field

from engine.settings.schema import Dataset
from engine.study.zeroshot.ways import WaysSettings


class ZeroshotSettings(WaysSettings):
    """A comparison by labels of images."""

    data: Dataset = Field(description="labelled images, such as a folder with a folder for each class")
    classes: str = Field(
        "auto",
        min_length=1,
        description="which of the model's classes each class of the images is: auto: by ImageNet's ids or names, or in "
        "the model's order where the numbers are equal; or a CSV file with lines CLASS,ID|NAME|NUMBER",
    )
