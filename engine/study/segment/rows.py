"""The record of a row of tools/segment.py."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from engine.runs.records.record import Count
from engine.study.zeroshot.rows import Row

SHOWN = 5  # test images whose masks are kept to be drawn


class SegmentRow(Row):
    """The counted pixels and the cost of one row."""

    pixels: list[list[list[Count]]] = Field(
        description="of each test image: pixels that are rightly predicted, predicted and labelled, by class"
    )
    shown: list[str] = Field([], description="masks that are predicted for the first test images, PNG in base64")

    @field_validator("shown")
    @classmethod
    def _of_pictures(cls, shown: list[str]) -> list[str]:
        for text in shown:
            _decoded(text)
        return shown

    @property
    def counts(self) -> np.ndarray:
        """The counted pixels, int64 (N, 3, classes); see `engine.measure.segmentation`."""
        return np.asarray(self.pixels, np.int64)

    def masks(self) -> Tensor:
        """The masks that are predicted for the first test images, uint8 (N, H, W); see `encoded`."""
        return torch.from_numpy(np.stack([_decoded(text) for text in self.shown]))


def encoded(masks: Tensor) -> list[str]:
    """Encodes masks, integers from 0 to 255 (N, H, W), as PNG files in base64."""
    answer = []
    for mask in masks.cpu().byte():
        file = io.BytesIO()
        Image.fromarray(mask.numpy()).save(file, format="png", optimize=True)
        answer.append(base64.b64encode(file.getvalue()).decode())
    return answer


def _decoded(text: str) -> np.ndarray:
    """Decodes a mask, uint8 (H, W).

    Raises:
        ValueError: it is damaged.
    """
    try:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"))
    except OSError as error:  # binascii.Error is a ValueError
        raise ValueError(f"a mask that is no picture: {error}") from None
