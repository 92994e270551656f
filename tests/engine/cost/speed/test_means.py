"""The forms of the size-weighted mean that are timed."""

import torch

from engine.cost.speed.means import MEANS


def test_every_mean_is_the_same_mean():
    x, size = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 2, 3, 1, 1, 2]] * 2)
    index = torch.tensor([[0, 1, 1, 0, 2, 1], [2, 2, 2, 0, 1, 1]])
    first, *others = (mean(x, size, index, 3) for mean in MEANS.values())
    for other in others:
        torch.testing.assert_close(other, first)
