"""The plain CNN: counts by hand, equal cost of its stages, and the sizes that it can take."""

import pytest
import torch

from engine.cost.macs import measure
from models import MODELS, build, build_model
from models.cnn import CNN
from models.settings import UserError, check


@pytest.mark.parametrize(("size", "width", "depths"), [(32, 16, [2, 3, 4, 2]), (8, 8, [1]), (24, 4, [1, 1, 2, 1])])
def test_counts_runs_and_learns(size, width, depths):
    options = {"name": "cnn", "img_size": size, "width": width, "depths": depths, "in_chans": 2, "num_classes": 7}
    settings = check(MODELS["cnn"][0], options, "model")
    torch.manual_seed(0)
    model = build(settings)
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    logits = model(torch.randn(3, 2, size, size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_counted_by_hand():
    """Each block costs 18 x 16^2 x 32^2, in any stage."""
    cost = measure(build_model("cnn", width=16, depths=[2, 1], num_classes=10))
    enter = 9 * 3 * 16 * 32**2 + 9 * 16 * 32 * 16**2
    assert cost.by_kind["convolution"] == enter + 3 * 18 * 16**2 * 32**2
    assert cost.by_kind["linear"] == 32 * 10


def test_stages_halve_the_map_and_double_the_channels():
    model: CNN = build_model("cnn", width=8, depths=[1, 2, 1])
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert shapes == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": 30}, ["model.img_size = 30", "3 stages halve it 2 times", "multiple of 4", "fewer depths"]),
        ({"depths": []}, ["model.depths"]),
        ({"depths": [1, 0]}, ["model.depths"]),
        ({"depth": 3}, ["model.depth: unknown key", "depths"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        build_model("cnn", **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
