"""Deletion and insertion, on a model whose answer depends on one cell alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.explain.faithful.areas import Curves, centre_map, deletion_and_insertion, random_map
from tests.engine.explain.faithful.planted import planted


def curves(model, images, relevance):
    return deletion_and_insertion(model, images, relevance, torch.tensor([1]), cells=4, steps=16)


def test_the_right_cell_first_is_the_best_and_last_the_worst():
    model, images, relevance = planted()
    right, wrong = curves(model, images, relevance), curves(model, images, -relevance)
    full = float(torch.tensor(4.0).sigmoid())
    assert right.deletion[0, 0] == pytest.approx(full) and (right.deletion[0, 1:] < 0.9).all()
    assert right.insertion[0, 1:].tolist() == pytest.approx([full] * 16) and right.insertion[0, 0] < full - 0.01
    assert wrong.deletion[0, :-1].tolist() == pytest.approx([full] * 16) and wrong.deletion[0, -1] < 0.9
    guess = curves(model, images, random_map(1, 4))
    for better, worse in ((right, guess), (guess, wrong)):
        assert better.areas[0, 0] < worse.areas[0, 0] and better.areas[0, 1] > worse.areas[0, 1]


def test_both_ends_do_not_depend_on_the_order():
    model, images, relevance = planted()
    one, other = curves(model, images, relevance), curves(model, images, random_map(1, 4, seed=3))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[:, [0, -1]], b[:, [0, -1]])
    assert one.insertion[0, -1] == one.deletion[0, 0]  # all inserted is nothing deleted


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (4, 4)])
def test_maps_of_every_resolution_name_the_same_cell(size):
    model, images, relevance = planted()
    finer = nn.functional.interpolate(relevance[None], size=size, mode="nearest")[0]
    assert torch.equal(curves(model, images, finer).deletion, curves(model, images, relevance).deletion)


def test_a_coarser_map_is_interpolated():
    model, images, _ = planted(row=3, column=3)
    coarse = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    found = curves(model, images, coarse)
    assert found.deletion[0, 1] < 0.9  # the corner is the most relevant of the 4 x 4


def test_areas_are_those_of_the_trapezoids():
    found = Curves(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
    assert found.areas.tolist() == [[0.5, 0.75]]


def test_images_do_not_depend_on_each_other():
    model, images, relevance = planted()
    both = deletion_and_insertion(
        model,
        torch.cat([images, images.flip(3)]),
        torch.cat([relevance, random_map(1, 4)]),
        torch.tensor([1, 0]),
        cells=4,
        steps=16,
    )
    torch.testing.assert_close(both.deletion[:1], curves(model, images, relevance).deletion)


def test_the_maps_to_beat():
    assert torch.equal(random_map(2), random_map(2)) and not torch.equal(random_map(2)[0], random_map(2)[1])
    blob = centre_map(2, 5)
    assert blob.shape == (2, 5, 5) and blob.flatten(1).argmax(1).tolist() == [12, 12]
