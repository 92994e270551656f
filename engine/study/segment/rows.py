"""The record of a row of tools/segment.py."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from pydantic import Field
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

    @property
    def counts(self) -> np.ndarray:
        """The counted pixels, int64 (N, 3, classes); see `engine.measure.segmentation`."""
        return np.asarray(self.pixels, np.int64)

    def masks(self) -> Tensor:
        """The masks that are predicted for the first test images, uint8 (N, H, W); see `encoded`."""
        files = [Image.open(io.BytesIO(base64.b64decode(text))) for text in self.shown]
        return torch.from_numpy(np.stack([np.asarray(file) for file in files]))


def encoded(masks: Tensor) -> list[str]:
    """Encodes masks, integers from 0 to 255 (N, H, W), as PNG files in base64."""
    answer = []
    for mask in masks.cpu().byte():
        file = io.BytesIO()
        Image.fromarray(mask.numpy()).save(file, format="png", optimize=True)
        answer.append(base64.b64encode(file.getvalue()).decode())
    return answer
