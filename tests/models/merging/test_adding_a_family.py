"""The family of ViTs that docs/merging.md adds as an example, put through what `wrap` promises of every family."""

from __future__ import annotations

import pytest
import torch

from models.merging import MERGERS, initial_tokens, unwrap, wrap
from models.merging.layer import MergeLayer
from models.merging.wrapping import FAMILIES, KINDS, schedule_of, trace
from models.settings import UserError
from tests.models.merging.wrapped_models import images
from tests.paths import ROOT

PATCHES = 16


@pytest.fixture(scope="module")
def defined():
    """What the page defines, which solves a budget; the tables are as before at the end."""
    page = (ROOT / "docs" / "merging.md").read_text()
    code = page.partition("## Adding a family")[2].partition("```python\n")[2].partition("```")[0]
    known = dict(FAMILIES), dict(KINDS)
    written = {"__name__": "example"}
    exec(compile(code.replace("hybridmerge", "models"), "docs/merging.md", "exec"), written)
    yield written
    for table, before in zip((FAMILIES, KINDS), known, strict=True):
        for key in set(table) - set(before):
            del table[key]


@pytest.fixture
def example(defined):
    """What the page defines, and always the same random weights."""
    torch.manual_seed(0)
    return defined


def test_the_budget_of_the_example_is_met(example):
    assert sum(schedule_of(example["model"])) > 0


def test_r0_is_the_model_itself_and_unwrap_gives_it_back(example):
    model = example["SmallViT"]().eval()
    before, keys = model(images()), list(model.state_dict())
    assert torch.equal(wrap(model)(images()), before)
    assert not torch.allclose(wrap(model, r=4)(images()), before, atol=1e-4)
    assert list(model.state_dict()) == keys and torch.equal(unwrap(model)(images()), before)


def test_the_equations_are_the_block_and_equal_tokens_change_nothing(example):
    model = example["SmallViT"]().eval()
    x = torch.randn(2, 1 + PATCHES // 2, 32)
    x = torch.cat([x[:, :1], x[:, 1:].repeat_interleave(2, dim=1)], dim=1)  # patches 2i and 2i + 1 are equal
    layer = MergeLayer(MERGERS["tome"], "keys", 1, 0.0, 32, 8)
    run = KINDS[example["Layer"]].run
    for block in model.layers:
        expected = block(x)
        out, _ = run(block, x, initial_tokens(x), 0, layer, None, own=False)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    expected = x
    for block in model.layers:
        expected = block(expected)
    wrap(model, r=[5, 0, 0])
    torch.testing.assert_close(model.layers(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", MERGERS)
def test_every_method_goes_through(example, method):
    model = wrap(example["SmallViT"]().eval(), method=method, r=5)
    out, tokens = trace(model, images())
    assert out.shape == (2, 5) and tokens.size.shape[1] == 1 + PATCHES - sum(schedule_of(model))
    for image in range(2):
        torch.testing.assert_close(model(images()[image : image + 1])[0], out[image], atol=1e-5, rtol=1e-5)
    model.train()(images()).square().sum().backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if "merging" not in name)


def test_a_block_with_more_parts_is_refused(example):
    model = example["SmallViT"]()
    model.layers[1].scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match=r"layers\.1 has scale, which wrap does not support"):
        wrap(model)


def test_a_model_without_a_convolution_has_no_budget(example):
    model = example["SmallViT"]()
    model.patches = torch.nn.Identity()
    with pytest.raises(UserError, match="target_ratio = 1.5: this SmallViT has no convolution that .*; give r"):
        wrap(model, target_ratio=1.5)
