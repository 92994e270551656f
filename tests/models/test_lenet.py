"""LeNet-5: sizes and counts by hand, and the sizes that it can take."""

import pytest
import torch

from engine.cost.macs import measure
from models import MODELS, build, build_model
from models.formulas import token_counts
from models.settings import UserError, check


@pytest.mark.parametrize(("chans", "params"), [(1, 61_706), (3, 62_006)])
def test_at_32_pixels_it_has_the_papers_maps(chans, params):
    """400 features into the first linear layer: 156 or 456 + 2,416 + 48,120 + 10,164 + 850 parameters."""
    model = build_model("lenet5", in_chans=chans)
    assert sum(p.numel() for p in model.parameters()) == params
    shapes = []
    for name in ("conv1", "conv2", "fc1", "fc2", "head"):
        getattr(model, name).register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, chans, 32, 32))
    assert shapes == [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)]


@pytest.mark.parametrize(("size", "padding"), [(16, 0), (17, 0), (64, 0), (10, 1), (4, 2), (8, 2), (28, 2), (31, 1)])
def test_any_size_counts_runs_and_learns(size, padding):
    options = {"name": "lenet5", "img_size": size, "padding": padding, "in_chans": 2, "num_classes": 7}
    settings = check(MODELS["lenet5"][0], options, "model")
    torch.manual_seed(0)
    model = build(settings)
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    assert cost.tokens == [] and token_counts(settings) == []
    logits = model(torch.randn(3, 2, size, size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_counted_by_hand():
    cost = measure(build_model("lenet5", in_chans=1))
    assert cost.by_kind["convolution"] == 28**2 * 25 * 6 + 10**2 * 25 * 6 * 16
    assert cost.by_kind["linear"] == 400 * 120 + 120 * 84 + 84 * 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": 15}, ["model.img_size = 15", "16 or more", "padding: 2"]),
        ({"img_size": 9, "padding": 1}, ["model.img_size = 9", "10 or more", "padding: 2"]),
        ({"img_size": 3, "padding": 2}, ["model.img_size = 3", "4 or more"]),
        ({"padding": 3}, ["model.padding = 3"]),
        ({"depth": 3}, ["model.depth: unknown key"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        build_model("lenet5", **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"\(3, 28, 28\).*\(3, 32, 32\)"):
        build_model("lenet5")(torch.zeros(1, 3, 28, 28))
