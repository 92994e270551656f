"""Explanations that perturb or integrate: equal to captum's, seeded, and right about models whose reasons are known."""

import ast
import re
import sys
from dataclasses import replace

import captum.attr
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from torch import nn

from models.explain import EXPLAINERS, explain
from models.explain.lime import clusters, superpixels
from models.merging import wrap
from models.merging.contract import Assignment
from models.merging.layer import MergeLayer
from models.settings import UserError
from tests.models.merging.wrapped_models import built
from tests.models.merging.wrapped_models import images as noise
from tests.paths import ROOT

SMALL = {  # options for images of 32 pixels
    "integrated_gradients": {"steps": 20},
    "occlusion": {"window": 8, "stride": 4},
    "rise": {"samples": 200, "cells": 4},
    "lime": {"samples": 200, "regions": 16},
}
EACH = pytest.mark.parametrize("method", SMALL)
SEEDED = pytest.mark.parametrize("method", ["rise", "lime"])


class OnePatch(nn.Module):
    """Class 1 is the brightness of the pixels in rows 8 to 15 and columns 16 to 23, minus that of the last 8 x 8."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        bright = x[:, :, 8:16, 16:24].mean((1, 2, 3)) - x[:, :, 24:, 24:].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), self.gain * bright], 1)


class Noise(nn.Module):
    """Its answer has nothing to do with the image."""

    def forward(self, x):
        return torch.randn(len(x), 2)


class Constant(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 2), 0.3)


def photo(size=32, channels=3):
    """Two squares, brighter than the rest, on a dim texture."""
    x = 0.1 * torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    x[:, :, 8:16, 16:24] += 2
    x[:, :, 24:, 24:] += 2
    return x


def planted(index):
    """A ViT of 16 patches, of which the first block merges those that share a number: index (B, 16), or (1, 16)."""
    count = int(index.max()) + 1
    model = wrap(built(), method="tome", r=[16 - count, 0, 0])
    for layer in (m for m in model.modules() if isinstance(m, MergeLayer)):
        layer.merger = replace(layer.merger, assign=lambda metric, *_: Assignment(index.expand(len(metric), -1), count))
    return model


HALVES = torch.tensor([[0, 0, 1, 1] * 4, [0] * 8 + [1] * 8])  # left and right; above and below
THIRDS = torch.tensor([[0, 1, 2, 1] * 4, [2] * 4 + [0] * 8 + [1] * 4])


@EACH
def test_the_patch_that_decides_has_the_maximum(method):
    found = explain(OnePatch(gain=4.0), photo(), method, target=1, **SMALL[method])
    assert found.relevance.shape == (2, 32, 32)
    for relevance in found.relevance:
        row, column = divmod(int(relevance.argmax()), 32)
        assert 8 <= row < 16 and 16 <= column < 24
        row, column = divmod(int(relevance.argmin()), 32)
        assert row >= 24 and column >= 24
        assert (float(relevance.min()) < 0) is EXPLAINERS[method].signed


@EACH
@pytest.mark.parametrize("merged", [False, True])
def test_vits(method, merged):
    model = planted(THIRDS[:1]) if merged else built()
    both = explain(model, noise(), method, target=2, **SMALL[method])
    assert both.relevance.shape == (2, 32, 32) and both.relevance.isfinite().all() and both.relevance.std() > 0
    alone = explain(model, noise()[1:], method, target=2, **SMALL[method])
    torch.testing.assert_close(both.relevance[1:], alone.relevance, rtol=1e-3, atol=1e-4)


def test_integrated_gradients_are_captums_and_complete():
    model, images = built(), noise()
    found = explain(model, images, "integrated_gradients", target=torch.tensor([1, 3]), steps=30)
    baseline = images.mean((2, 3), keepdim=True).expand_as(images)
    expected = captum.attr.IntegratedGradients(model).attribute(
        images.clone().requires_grad_(), baselines=baseline, target=[1, 3], n_steps=30
    )
    torch.testing.assert_close(found.relevance, expected.sum(1).float())
    with torch.no_grad():
        gained = (model(images) - model(baseline))[torch.arange(2), torch.tensor([1, 3])]
    for i, note in enumerate(found.notes):
        missing = float(found.relevance[i].sum() - gained[i])
        assert missing == pytest.approx(note["delta"], abs=1e-4)
        assert abs(note["delta"]) < 0.05 * float(gained[i].abs())


def test_integrated_gradients_say_where_steps_are_too_few():
    deltas = [explain(built(), noise(), "integrated_gradients", steps=s).notes[0]["delta"] for s in (1, 30)]
    assert abs(deltas[1]) < 0.1 * abs(deltas[0])


def test_occlusion_is_captums():
    model, images = built(), noise()
    found = explain(model, images, "occlusion", target=2, window=12, stride=8)
    expected = captum.attr.Occlusion(model).attribute(
        images,
        sliding_window_shapes=(3, 12, 12),
        strides=(3, 8, 8),
        baselines=images.mean((2, 3), keepdim=True).expand_as(images),
        target=2,
    )
    torch.testing.assert_close(found.relevance, expected.mean(1).float(), rtol=1e-4, atol=1e-5)


def test_rise_is_its_formula():
    """Without shifts to speak of: cells of one pixel, so that the masks are known."""
    model, images = OnePatch(), photo()
    found = explain(model, images, "rise", target=1, cells=32, samples=50, keep=0.3, seed=5)
    torch.manual_seed(5)
    grids = (torch.rand(50, 1, 32, 32) < 0.3).float()
    masks = nn.functional.interpolate(grids, (33, 33), mode="bilinear")[:, :, :32, :32]
    for image, relevance in zip(images, found.relevance):
        probability = model(image * masks).softmax(1)[:, 1].detach()
        expected = sum(p * mask[0] for p, mask in zip(probability, masks)) / (50 * 0.3)
        torch.testing.assert_close(relevance, expected)


def test_lime_is_captums():
    """Captum's own class, with its painting of one image at a time and scikit-learn's ridge regression."""
    model, images = built(), noise()[:1]
    found = explain(model, images, "lime", target=2, samples=100, seed=3, regions=16)
    parts = superpixels(images, "slic", 16, 3)
    count = int(parts.max()) + 1
    torch.manual_seed(3)
    samples = torch.rand(100, count) < 0.5
    samples[0] = True
    rest = iter(samples.split(1))

    def kernel(image, perturbed, mask, **_):
        return torch.exp(-((1 - torch.cosine_similarity(mask.float(), torch.ones(1, count))) ** 2) / (2 * 0.25**2))

    expected = captum.attr.Lime(model, SkLearnRidge(alpha=1.0), kernel, lambda *_, **__: next(rest).long()).attribute(
        images,
        baselines=images.mean((2, 3), keepdim=True).expand_as(images),
        target=2,
        feature_mask=parts.unsqueeze(1),
        n_samples=100,
    )
    assert found.notes[0]["regions"] == count > 4
    torch.testing.assert_close(found.relevance, expected[:, 0].float(), rtol=1e-3, atol=1e-4)


@SEEDED
def test_one_seed_is_one_result(method):
    """Also of a model that draws; and whoever else draws gets the same numbers as without the explanation."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = [explain(Constant(), photo(), method, **SMALL[method], seed=seed) for seed in (1, 1, 2)]
    assert torch.get_rng_state().equal(before)
    assert found[0].relevance.equal(found[1].relevance)
    found = [explain(Noise(), photo(), method, target=1, **SMALL[method], seed=seed) for seed in (1, 1, 2)]
    assert found[0].relevance.equal(found[1].relevance) and not found[0].relevance.equal(found[2].relevance)
    assert found[0].notes == found[1].notes


@SEEDED
def test_the_result_does_not_depend_on_the_batch(method):
    found = [explain(OnePatch(), photo(), method, target=1, **SMALL[method], batch=batch) for batch in (7, 500)]
    torch.testing.assert_close(found[0].relevance, found[1].relevance)


def test_r2():
    """One of a model that is linear in the means of regions, about regions / samples of one that is noise."""
    options = {"samples": 1000, "regions": 16, "target": 1}
    linear = explain(OnePatch(), photo(), "lime", **options)
    nothing = explain(Noise(), photo(), "lime", **options)
    constant = explain(Constant(), photo(), "lime", **options)
    for note in linear.notes:
        assert 0.999 < note["r2"] <= 1
    for note in nothing.notes:
        assert note["regions"] > 4 and 0 < note["r2"] < 0.1
    assert [note["r2"] for note in constant.notes] == [0, 0]


@pytest.mark.parametrize("index", [HALVES, THIRDS])
def test_clusters_are_the_merges(index):
    expected = index.view(2, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert clusters(planted(index), noise()).equal(expected)


def test_lime_has_one_weight_for_each_cluster():
    model = wrap(built(), method="tome", r=4)
    parts = clusters(model, noise())
    found = explain(model, noise(), "lime", segments="clusters", samples=100)
    for part, relevance, note in zip(parts, found.relevance, found.notes):
        assert note["regions"] == int(part.max()) + 1 == 4  # 16 - 3 x 4
        assert relevance.unique().numel() == 4
        assert all(relevance[part == k].unique().numel() == 1 for k in range(4))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("segments", ["slic", "quickshift"])
def test_superpixels_follow_edges_and_not_the_units(segments, channels):
    assert superpixels(torch.full((1, 3, 32, 32), 0.7), segments, 16, 0).shape == (1, 32, 32)  # one colour
    images = photo(64, channels)
    parts = superpixels(images, segments, 60, 0)
    assert parts.shape == (2, 64, 64)
    assert superpixels(images * 3 - 5, segments, 60, 0).equal(parts)
    for part in parts:
        assert part.unique().tolist() == list(range(int(part.max()) + 1))
    if segments == "slic":
        square = torch.zeros(64, 64, dtype=torch.bool)
        square[9:15, 17:23] = True  # without its rim
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[7:17, 15:25] = False
        for part in parts:
            assert not set(part[square].tolist()) & set(part[outside].tolist())


@pytest.mark.parametrize("method", ["occlusion", "rise", "lime"])
def test_progress(method):
    calls = []
    explain(OnePatch(), photo(), method, **SMALL[method], batch=30, progress=lambda *at: calls.append(at))
    done, totals = zip(*calls)
    assert len(set(totals)) == 1 and done[-1] == totals[0] and sorted(set(done)) == list(done) and len(done) > 3


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("occlusion", {"window": 33}, "window = 33: larger than the image of 32 x 32 pixels"),
        ("occlusion", {"window": 8}, "stride = 16: would leave pixels out; use at most window = 8"),
        ("occlusion", {"window": 0}, "window = 0: give a whole number of at least 1"),
        ("integrated_gradients", {"steps": 0}, "steps = 0: give a whole number of at least 1"),
        ("rise", {"keep": 0}, "keep = 0: give a probability above 0 and below 1"),
        ("rise", {"seed": -1}, "seed = -1: give a whole number of at least 0"),
        ("lime", {"samples": "many"}, "samples = 'many': give a whole number of at least 1"),
        ("lime", {"batch": True}, "batch = True: give a whole number of at least 1"),
        ("lime", {"regions": 0}, "regions = 0: give a whole number of at least 1"),
        ("lime", {"segments": "slick"}, "segments = 'slick': unknown; did you mean slic?"),
        ("lime", {"segments": "clusters"}, "segments = clusters: the model merges no tokens; use slic"),
        ("lime", {"sample": 5}, "sample: not an option of lime; known: segments, regions, samples, seed, batch"),
    ],
)
def test_mistakes(method, options, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
        explain(OnePatch(), photo(), method, **options)
    assert "\n" not in str(error.value)


def test_clusters_of_a_wrapped_model_that_removes_nothing():
    with pytest.raises(UserError, match="^segments = clusters: the model merges no tokens; use slic$"):
        explain(wrap(built(), method="tome", r=0), noise(), "lime", segments="clusters")


@pytest.mark.parametrize(
    ("method", "missing", "needs"),
    [
        ("lime", "captum.attr", "captum and scikit-image"),
        ("lime", "skimage.segmentation", "captum and scikit-image"),
        ("occlusion", "captum.attr", "captum"),
        ("integrated_gradients", "captum.attr", "captum"),
    ],
)
def test_a_missing_package(method, missing, needs, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    expected = f"{method}: needs {needs}; pip install 'hybridmerge[explain]'"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        explain(OnePatch(), photo(), method, **SMALL[method])


def test_only_the_methods_import_them():
    for path in (ROOT / "models" / "explain").glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # not inside functions
            assert not re.match(r"(import|from) (captum|skimage)", ast.unparse(node)), path


def test_clusters_do_not_need_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    assert clusters(planted(HALVES), noise()).max() == 1
