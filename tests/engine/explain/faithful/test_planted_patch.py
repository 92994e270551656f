"""Every method finds the patch that decides the class, merged or not, in each kind of model that it fits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.explain.faithful.areas import deletion_and_insertion, random_map
from engine.explain.faithful.infidelity import infidelity
from engine.explain.faithful.road import road
from models.explain import EXPLAINERS, explain
from models.merging import wrap
from tests.engine.explain.faithful.patches import BUILT, GRID, pictures, trained

pytest.importorskip("captum")
pytest.importorskip("skimage")
pytestmark = pytest.mark.slow  # half a minute of one core for all of them

R = 4  # of 16 patches, in each block
FOUND = 0.7  # of the images, at least
TOP = 2  # cells of 16 among which the patch has to be; a tie counts, as where it is merged with another
OPTIONS = {
    "lime": {"samples": 100, "regions": GRID * GRID},
    "rise": {"samples": 250, "cells": 8, "keep": 0.2},
    "occlusion": {"window": 8, "stride": 4},
    "integrated_gradients": {"steps": 16},
}
CASES = [(name, merged) for name in BUILT for merged in (False, True) if not (merged and name == "cnn")]


@pytest.fixture(scope="module")
def models():
    """Each model, trained when it is first asked for."""
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)

    def model(name, merged):
        if name not in found:
            found[name] = trained(name)
        if name == "timm":
            wrap(found[name], r=R if merged else 0)
        elif name != "cnn":
            found[name].schedule = [R if merged else 0] * len(found[name].schedule)
        return found[name]

    yield model
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def planted():
    """Images of the class with stripes, other ones than those of training."""
    images, labels, cells = pictures(20, seed=1)
    return images[labels > 0], labels[labels > 0], cells[labels > 0]


def found_in(relevance, cells):
    """The share of images in which the planted cell is among the most relevant TOP; of a coarser map, the first."""
    side = min(GRID, *relevance.shape[1:])
    top = TOP if side == GRID else 1
    values = F.adaptive_avg_pool2d(relevance.unsqueeze(1), side).flatten(1)
    wanted = cells // GRID * side // GRID * side + cells % GRID * side // GRID
    here = values.gather(1, wanted.unsqueeze(1)).squeeze(1)
    least = values.topk(top, dim=1).values[:, -1]
    return float((here >= least - 1e-4 * values.abs().amax(1)).float().mean())


@pytest.mark.parametrize(("name", "merged"), CASES)
def test_every_method_finds_the_patch(models, planted, name, merged):
    images, labels, cells = planted
    model = models(name, merged)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.8
    guess = random_map(len(images), GRID)
    by_chance = measured(model, images, guess, labels)
    assert found_in(guess, cells) < 0.4
    for method in EXPLAINERS:
        if name == "cnn" and "rollout" in method:
            continue  # without attention
        relevance = explain(model, images, method, labels, **OPTIONS.get(method, {})).relevance
        assert found_in(relevance, cells) >= FOUND, method
        scores = measured(model, images, relevance, labels)
        for measure, sign in (("insertion", 1), ("deletion", -1), ("LeRF", 1), ("MoRF", -1), ("infidelity", -1)):
            assert sign * scores[measure] > sign * by_chance[measure], (method, measure)


def measured(model, images, relevance, labels):
    """Every measure's mean over the images."""
    asked = model, images, relevance, labels
    deletion, insertion = deletion_and_insertion(*asked, cells=GRID, steps=8).areas.mean(0).tolist()
    morf, lerf = road(*asked, cells=GRID).mean(0).tolist()
    unfaithful = float(infidelity(*asked, cells=GRID, samples=25).mean())
    return {"deletion": deletion, "insertion": insertion, "MoRF": morf, "LeRF": lerf, "infidelity": unfaithful}
