"""Infidelity: the paper's formula, and what follows from it."""

from __future__ import annotations

import pytest
import torch

from engine.explain.faithful.areas import random_map
from engine.explain.faithful.infidelity import infidelity, squares
from tests.engine.explain.faithful.planted import planted

pytest.importorskip("captum")


def test_it_is_the_papers_formula():
    """With the best factor for each image, by hand."""
    model, _, _ = planted()
    torch.manual_seed(0)
    images, maps, target = torch.randn(2, 3, 32, 32), random_map(2, 4), torch.tensor([1, 0])
    found = infidelity(model, images, maps, target, cells=4, samples=40)
    for i in range(2):
        logit = model(images[i : i + 1])[0, target[i]]
        sums, falls = [], []
        for square in squares(40, 4):
            hidden = square.repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
            removed = torch.where(hidden, images[i].mean((1, 2), keepdim=True), images[i])
            sums.append((maps[i] * square).sum())
            falls.append(logit - model(removed[None])[0, target[i]])
        sums, falls = torch.stack(sums), torch.stack(falls)
        factor = (sums * falls).mean() / (sums**2).mean()
        torch.testing.assert_close(found[i], ((factor * sums - falls) ** 2).mean(), rtol=1e-4, atol=1e-6)


def test_the_map_that_adds_up_has_none_and_others_have_more():
    model, images, relevance = planted()
    target = torch.tensor([1])
    right, guess = (infidelity(model, images, values, target, cells=4) for values in (37 * relevance, random_map(1, 4)))
    assert right.item() == pytest.approx(0, abs=1e-4) and guess.item() > 0.1


def test_images_do_not_depend_on_each_other():
    torch.manual_seed(0)
    model, images = planted()[0], torch.randn(2, 3, 32, 32)
    maps, target = random_map(2, 4), torch.tensor([1, 0])
    both = infidelity(model, images, maps, target, cells=4)
    torch.testing.assert_close(infidelity(model, images[1:], maps[1:], target[1:], cells=4), both[1:])


def test_squares_lie_within_and_have_all_sizes():
    masks = squares(400, 14)
    sizes = masks.sum((1, 2)).sqrt()
    assert sizes.min() == 1 and sizes.max() == 7 and torch.equal(sizes, sizes.round())
    assert (masks.mean(0) > 0).all()  # every cell is in some
    assert torch.equal(squares(5), squares(400)[:5]) and squares(3, cells=1).sum() == 3
