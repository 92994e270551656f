"""The CNN stage of a segmenter: what it computes, that it learns what patches alone do not show, and its seed."""

import pytest
import torch
from torch.nn import functional as F

from engine.study.segment.evaluate import evaluate_rows
from engine.study.segment.probe import fit_linear
from engine.study.segment.settings import StageSettings
from engine.study.segment.stage import CNNStage, fit_stage

QUICK = StageSettings(dim=8, epochs=30, lr=1e-2, batch_size=8, dropout=0.0)


@pytest.fixture
def stripes():
    """Maps of noise at several scales in which every patch has the class of the patch to its left, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 2, (64, 6, 6), generator=generator)
    maps = torch.randn(64, 3, 6, 6, generator=generator) * 0.1
    maps[:, 0] += classes
    scales = torch.tensor([100.0, 1.0, 0.01])[:, None, None]
    return maps * scales + 5, F.one_hot(classes.roll(1, dims=2), 2).float()


def right(logits, shares):
    return (logits.argmax(1) == shares.argmax(-1)).float().mean().item()


def test_a_stage_sees_the_neighbours_of_a_patch(stripes):
    maps, shares = stripes
    shares[:, :, 0] = 0  # the first column has no patch to its left: ignored
    stage = fit_stage(maps[:48], shares[:48], QUICK)
    assert not stage.training and right(stage(maps[48:])[..., 1:], shares[48:, :, 1:]) > 0.95
    weight, bias = fit_linear(maps[:48].movedim(1, -1).flatten(0, 2), shares[:48].flatten(0, 2), 1e-3, 100)
    linear = F.conv2d(maps[48:], weight[:, :, None, None], bias)
    assert right(linear[..., 1:], shares[48:, :, 1:]) < 0.65
    alone = fit_stage(maps[:48], shares[:48], QUICK.model_copy(update={"depth": 0}))
    assert right(alone(maps[48:])[..., 1:], shares[48:, :, 1:]) < 0.65


def test_a_stage_is_decided_by_its_seed_and_leaves_the_random_state(stripes):
    maps, shares = stripes
    short = QUICK.model_copy(update={"epochs": 2, "dropout": 0.3})
    before = torch.get_rng_state()
    first, second = fit_stage(maps, shares, short), fit_stage(maps, shares, short)
    assert torch.equal(torch.get_rng_state(), before)
    other = fit_stage(maps, shares, short.model_copy(update={"seed": 1}))
    assert torch.equal(first(maps), second(maps)) and not torch.equal(first(maps), other(maps))


def test_the_scale_of_features_is_a_part_of_the_weights(stripes):
    """Features of another scale and offset lead to the same logits."""
    maps, shares = stripes
    short = QUICK.model_copy(update={"epochs": 3})
    one, other = fit_stage(maps, shares, short), fit_stage(3 * maps - 2, shares, short)
    torch.testing.assert_close(one(maps), other(3 * maps - 2), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("block", ["residual", "convnext"])
def test_a_stage_has_the_blocks_of_its_settings(block):
    stage = CNNStage(StageSettings(block=block, depth=2, dim=8), 5, 3)
    assert len(stage.blocks) == 2 and stage.eval()(torch.randn(2, 5, 4, 3)).shape == (2, 3, 4, 3)


def test_rows_are_fitted_with_a_stage_of_their_own(load, tmp_path):
    given = ("methods=[]", "budgets=[]", "sizes=[32]", "data.train=8", "data.test=3")
    stage = "probe.cnn={dim: 8, epochs: 5, lr: 1e-2}"
    _, (linear, _) = evaluate_rows(load(*given), tmp_path, lambda line: None)
    _, (own, small) = evaluate_rows(load(*given, stage), tmp_path, lambda line: None)
    assert linear.key != own.key and linear.pixels != own.pixels
    proj, block, last = 64 * 8, 2 * 9 * 8 * 8, 8 * 4
    assert own.gmacs - linear.gmacs == pytest.approx(16 * (proj + block + last - 64 * 4) / 1e9)
    assert small.gmacs < own.gmacs and own.params > linear.params
    _, (few, _) = evaluate_rows(load(*given, stage, "probe.patches=40"), tmp_path, lambda line: None)
    assert few.pixels != own.pixels  # of two images
