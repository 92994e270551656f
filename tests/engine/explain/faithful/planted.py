"""A model whose answer depends on one cell alone, and an image for it."""

from __future__ import annotations

import torch
from torch import nn


class OneCell(nn.Module):
    """Two classes: the logit of class 1 is the first channel's value at the corner of one cell of 4 x 4."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.place = (8 * row, 8 * column)

    def forward(self, images):
        bright = images[:, 0, self.place[0], self.place[1]]
        return torch.stack([torch.zeros_like(bright), bright], dim=1)


def planted(row=1, column=2, value=4.0):
    """The model, an image whose cell is bright, and the map that says so."""
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = value
    relevance = torch.zeros(1, 4, 4)
    relevance[0, row, column] = 1
    return OneCell(row, column), images, relevance
