"""Pictures of what was merged: merging by colour, and what is painted where."""

from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.figures.merge_drawing import Row, borders, draw_rows, painted
from engine.figures.merge_tracing import Merged, features, merged_by_colour
from models.merging import MERGERS

PATCH = 8
COLOURS = [(220, 40, 30), (20, 60, 200), (240, 240, 230), (10, 20, 10)]
QUADRANTS = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
CROSS = {((2, y), (2, y + 1)) for y in range(4)} | {((x, 2), (x + 1, 2)) for x in range(4)}


@pytest.fixture
def flag():
    """Four quadrants of one colour each, 4 x 4 patches."""
    colours = torch.tensor(COLOURS, dtype=torch.uint8)[QUADRANTS]
    return colours.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).permute(2, 0, 1)


@pytest.fixture
def noise():
    """5 x 7 patches of noise, and a token for each at random."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 5 * PATCH, 7 * PATCH), generator=g, dtype=torch.uint8)
    return image, torch.randint(0, 9, (5, 7), generator=g)


@pytest.mark.parametrize("method", ["pool", "facility_location", "dpc_knn", "grid"])
def test_regions_of_one_colour_become_one_token_each(flag, method):
    merged = merged_by_colour(flag, PATCH, method, 0.25)
    assert merged.title == method and merged.tokens == 4
    assert set(borders(merged.index)) == CROSS and len(borders(merged.index)) == 8
    exact = torch.tensor(COLOURS)[QUADRANTS] / 255
    torch.testing.assert_close(painted(flag, merged.index), exact)


def test_tome_joins_patches_of_one_colour_first(flag):
    """One pair: the second may need two colours, since `tome` splits what is left by its order, where each colour can
    fall on one side. Which pair is first depends on how the processor rounds the cosine of a colour with itself."""
    merged = merged_by_colour(flag, PATCH, "tome", 15 / 16)
    (pair,) = [
        (merged.index == token).nonzero() for token in merged.index.unique() if (merged.index == token).sum() > 1
    ]
    assert merged.tokens == 15 and len(pair) == 2
    torch.testing.assert_close(painted(flag, merged.index), torch.tensor(COLOURS)[QUADRANTS] / 255)


@pytest.mark.parametrize("method", [name for name, merger in MERGERS.items() if not merger.learns])
def test_every_method_leaves_what_it_is_asked_for(noise, method):
    image = noise[0][:, :, : 5 * PATCH]
    for keep, left in ((1.0, 25), (0.6, 15), (0.1, 3)):
        merged = merged_by_colour(image, PATCH, method, keep)
        assert merged.index.shape == (5, 5) and len(merged.index.unique()) == merged.tokens
        if MERGERS[method].shrink is None and method != "none":
            assert merged.tokens == left
        else:
            assert left <= merged.tokens <= 25


def test_what_is_rare_gets_little_attention(flag):
    """Two patches unlike all others are what topk fuses, one step after the other."""
    image = torch.full_like(flag, 120) + torch.arange(32, dtype=torch.uint8) // PATCH * 3
    image[:, :PATCH, :PATCH], image[:, -PATCH:, -PATCH:] = 0, 255
    index = merged_by_colour(image, PATCH, "topk", 15 / 16).index
    assert index[0, 0] == index[3, 3] and (index == index[0, 0]).sum() == 2


def test_features_compare_colours():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 3 * PATCH**2, generator=g)
    x[:, 1, :100] = x[:, 0, :100]
    a, b = features(x, PATCH)[0]
    thumbnails = x[0].view(2, 3, 4, PATCH // 4, 4, PATCH // 4).mean((3, 5)).flatten(1).tolist()
    expected = sum(cos(pi * (v - w)) for v, w in zip(*thumbnails)) / (3 * 16)
    assert F.cosine_similarity(a, b, dim=0).item() == pytest.approx(expected, abs=1e-5)
    black, white = features(torch.stack([torch.zeros(1, 12), torch.ones(1, 12)], 1), 2)[0]  # smaller than a thumbnail
    assert F.cosine_similarity(black, white, dim=0).item() == pytest.approx(-1)


def test_each_patch_has_the_mean_colour_of_its_tokens_patches(noise):
    image, index = noise
    found = painted(image, index)
    patches = image.numpy().reshape(3, 5, PATCH, 7, PATCH)
    for row in range(5):
        for column in range(7):
            same = [patches[:, r, :, c] for r in range(5) for c in range(7) if index[r, c] == index[row, column]]
            expected = np.mean([patch.mean((1, 2)) for patch in same], axis=0) / 255
            np.testing.assert_allclose(found[row, column], expected, atol=1e-5)


def test_borders_are_between_different_tokens_only(noise):
    index = noise[1]
    expected = set()
    for row in range(5):
        for column in range(7):
            if column < 6 and index[row, column] != index[row, column + 1]:
                expected.add(((column + 1, row), (column + 1, row + 1)))
            if row < 4 and index[row, column] != index[row + 1, column]:
                expected.add(((column, row + 1), (column + 1, row + 1)))
    found = borders(index)
    assert len(found) == len(set(found)) and set(found) == expected
    assert borders(torch.zeros(3, 3, dtype=torch.int64)) == []


def test_the_figure_has_a_row_for_each_photograph_and_a_column_for_each_method(flag):
    merged = [Merged("pool", QUADRANTS, 4), Merged("other", torch.arange(16).view(4, 4), 16)]
    figure = draw_rows([Row("a", flag, merged), Row("b", flag, merged)], ["one", "two words " * 60])
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["photograph\n16 patches", "pool\n4 tokens", "other\n16 tokens"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "", "", "b", "", ""]
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), painted(flag, QUADRANTS))
    lines = figure.axes[4].collections[-1].get_segments()
    assert {tuple(map(tuple, line.astype(int).tolist())) for line in lines} == CROSS
    assert max(map(len, figure.get_supxlabel().splitlines())) < 17 * figure.get_figwidth() + 1
