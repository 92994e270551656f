"""ROAD: the paper's equations one by one, and what follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.explain.faithful import road as module
from engine.explain.faithful.areas import random_map
from engine.explain.faithful.road import FRACTIONS, NOISE, imputed, road
from tests.engine.explain.faithful.planted import planted


def literal(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The paper's system, an equation for each removed pixel and channel, solved as a dense one."""
    channels, height, width = image.shape
    unknown = [(y, x) for y in range(height) for x in range(width) if removed[y, x]]
    filled = image.copy()
    for channel in range(channels):
        matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros(len(unknown))
        for equation, (y, x) in enumerate(unknown):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if (dy, dx) == (0, 0) or not (0 <= y + dy < height and 0 <= x + dx < width):
                        continue
                    weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                    matrix[equation, equation] += weight  # at the edge, the others have all the weight
                    if removed[y + dy, x + dx]:
                        matrix[equation, unknown.index((y + dy, x + dx))] -= weight
                    else:
                        right[equation] += weight * image[channel, y + dy, x + dx]
        for (y, x), value in zip(unknown, np.linalg.solve(matrix, right)):
            filled[channel, y, x] = value
    return filled


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("side", [1, 4])  # of what is removed: pixels, and cells, edges and corners included
def test_imputation_is_the_papers_system(side, share):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(2, 12, 16))
    removed = (generator.random((12 // side, 16 // side)) < share).repeat(side, 0).repeat(side, 1)
    removed[0, 0], removed[-1, 1] = True, False
    np.testing.assert_allclose(imputed(image, removed), literal(image, removed), rtol=0, atol=1e-12)


def test_what_is_not_removed_stays_and_a_slope_is_continued():
    """Inside an image the weights are symmetric, so that a plane fulfils the equations."""
    y, x = np.mgrid[:12, :12].astype(float)
    plane = np.stack([y, 2 * x - y])
    removed = np.zeros((12, 12), bool)
    removed[3:8, 2:10] = True
    broken = np.where(removed, 99.0, plane)
    np.testing.assert_allclose(imputed(broken, removed), plane, atol=1e-12)
    assert np.array_equal(imputed(plane, np.zeros_like(removed)), plane)


def test_the_right_cell_first_is_the_best_and_last_the_worst():
    model, images, relevance = planted()
    target = torch.tensor([1])
    right, guess, wrong = (
        road(model, images, values, target, cells=4)[0] for values in (relevance, random_map(1, 4), -relevance)
    )
    full, gone = float(torch.tensor(4.0).sigmoid()), 0.5
    assert right[0] == pytest.approx(gone, abs=0.02) and right[1] == pytest.approx(full, abs=1e-6)
    assert wrong[0] == pytest.approx(full, abs=1e-6) and wrong[1] == pytest.approx(gone, abs=0.02)
    assert right[0] <= guess[0] <= wrong[0] and right[1] >= guess[1] >= wrong[1]


def test_the_noise_is_the_images_own(monkeypatch):
    """It depends on an image's number, and not on what it is computed with."""
    torch.manual_seed(0)
    model, images = planted()[0], torch.randn(3, 3, 32, 32)
    maps, target = random_map(3, 4), torch.tensor([1, 0, 1])
    together = road(model, images, maps, target, cells=4)
    for i in range(3):
        alone = road(model, images[i : i + 1], maps[i : i + 1], target[i : i + 1], cells=4, first=i)
        torch.testing.assert_close(alone, together[i : i + 1])
    seen = []
    road(lambda x: seen.append(x) or model(x), images[:1], planted()[2], target[:1], cells=4)
    monkeypatch.setattr(module, "NOISE", 0)
    road(lambda x: seen.append(x) or model(x), images[:1], planted()[2], target[:1], cells=4)
    assert len(seen) == 4 * len(FRACTIONS)
    noise = torch.stack(seen[: 2 * len(FRACTIONS)]) - torch.stack(seen[2 * len(FRACTIONS) :])
    removed = [(part != 0).float().mean() for part in noise]
    assert removed == pytest.approx([round(16 * f) / 16 for f in FRACTIONS] * 2)  # MoRF, LeRF
    assert noise[noise != 0].std() == pytest.approx(NOISE, rel=0.05)
