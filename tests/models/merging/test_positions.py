"""The positions of merged patches, and a method that joins neighbours by them: the example of docs/merging.md."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from engine.cost.macs import measure
from models import build_model
from models.merging import MERGERS, apply_assignment, effective_schedule, initial_tokens, merge, wrap
from models.merging.contract import Assignment
from models.merging.settings import MergeSettings
from models.merging.tokens import mean_positions
from models.merging.wrapping import trace
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from tests.models.merging.test_contract import PAGE, cases, holds_the_contract
from tests.models.merging.wrapped_models import TINY, built, images, prefix_of


def near():
    """The example of docs/merging.md."""
    example = next(block for block in PAGE.split("```python")[1:] if "def near(" in block).split("```")[0]
    written = {"__package__": "models.merging.methods"}
    exec(compile(example, "docs/merging.md", "exec"), written)
    return written["NEAR"]


def means_by_loops(tokens, grid, prefix):
    """Rows and columns averaged patch by patch, (B, T - prefix, 2)."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    means = []
    for index in (tokens.index[:, prefix:] - prefix).tolist():
        members = [[place for place, token in zip(places, index) if token == t] for t in range(max(index) + 1)]
        means.append([np.mean(member, axis=0) for member in members])
    return np.array(means)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_before_any_merge_they_are_the_grid_s_coordinates(prefix):
    tokens = initial_tokens(torch.zeros(2, prefix + 6, 4), grid=(2, 3))
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert mean_positions(tokens, prefix).tolist() == [expected, expected]


@pytest.mark.parametrize("method", ["tome", "random", "pitome", "grid"])
@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_they_are_the_mean_of_all_member_patches_after_several_merges(method, case):
    x, grid, prefix, asked = case
    tokens = initial_tokens(x, grid)
    for r in effective_schedule(asked, grid[0] * grid[1], MERGERS[method], grid):
        x, tokens = merge(x, tokens, x, r, MERGERS[method], prefix)
        position = mean_positions(tokens, prefix)
        np.testing.assert_allclose(position.numpy(), means_by_loops(tokens, grid, prefix), atol=1e-5)
        for image in range(len(x)):  # no image depends on the rest of the batch
            alone = tokens._replace(index=tokens.index[image : image + 1], size=tokens.size[image : image + 1])
            assert torch.equal(mean_positions(alone, prefix)[0], position[image])
        centre = (position * tokens.size[:, prefix:, None]).sum(1) / (grid[0] * grid[1])  # weighted by mass
        middle = torch.tensor([(side - 1) / 2 for side in grid])
        torch.testing.assert_close(centre, middle.expand_as(centre), atol=1e-4, rtol=1e-4)


def test_a_large_token_and_a_small_one():
    tokens = initial_tokens(torch.zeros(1, 4, 1), grid=(1, 4))
    first = Assignment(torch.tensor([[0, 0, 0, 1]]), 2)
    x, tokens = apply_assignment(torch.zeros(1, 4, 1), tokens, first, prefix=0)
    assert mean_positions(tokens, 0).tolist() == [[[0, 1], [0, 3]]]
    _, tokens = apply_assignment(x, tokens, Assignment(torch.tensor([[0, 0]]), 1), prefix=0)
    assert mean_positions(tokens, 0).tolist() == [[[0, 1.5]]]  # not 2, the mean of the two tokens' positions


def test_only_methods_that_request_positions_get_them():
    seen = []

    def spied(metric, r, context):
        seen.append(context.position)
        return MERGERS["tome"].assign(metric, r, context)

    x = torch.randn(2, 7, 4)
    for position in (False, True):
        merger = replace(MERGERS["tome"], assign=spied, position=position)
        merge(x, initial_tokens(x, (2, 3)), x, 2, merger, prefix=1)
    assert seen[0] is None and seen[1].shape == (2, 6, 2) and not seen[1].requires_grad


def test_positions_without_a_grid_are_refused():
    x = torch.randn(1, 4, 4)
    with pytest.raises(ValueError, match="the grid of these patches is not known"):
        merge(x, initial_tokens(x), x, 1, near(), prefix=0)


# A method that joins neighbours


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_the_example_holds_the_contract(case):
    holds_the_contract(near(), case)


def test_it_joins_neighbours_after_the_first_merge_too():
    """Among equal patches distance alone decides: each step joins tokens that lie next to each other."""
    grid, x = (6, 6), torch.ones(1, 36, 4)
    tokens = initial_tokens(x, grid)
    for r in (9, 6, 4):
        before, position = tokens, mean_positions(tokens, 0)[0]
        x, tokens = merge(x, tokens, x, r, near(), prefix=0)
        assert before is tokens or tokens.grid is None
        for token in range(x.shape[1]):
            members = before.index[0][tokens.index[0] == token].unique()
            between = torch.cdist(position[members], position[members])
            assert (between.topk(min(2, len(members)), largest=False).values <= 1.6).all()


@pytest.fixture
def registered(monkeypatch):
    """The example under the name of a method that settings know."""
    assert "random" in get_args(MergeSettings.model_fields["method"].annotation)
    monkeypatch.setitem(MERGERS, "random", near())


@pytest.mark.usefixtures("registered")
def test_it_works_in_our_models_and_wrapped_ones_and_its_costs_agree():
    merge_section = {"method": "random", "r": [4, 3, 2]}
    model = build_model("vit", **TINY, merge=merge_section).eval()
    _, tokens = model.forward_features(images())
    assert tokens.size.shape == (2, 17 - 9)
    model.train()(images()).sum().backward()
    model = build_model("conformer", **TINY, base_channel=8, stem_stride=1, merge=merge_section).eval()
    assert model(images()).isfinite().all()
    for name in ("registers", "torchvision", "beit"):
        model = wrap(built(name), **merge_section)
        assert trace(model, images())[1].size.shape[1] == prefix_of(model) + 16 - 9
    options = check(ViTSettings, {**TINY, "merge": merge_section})
    assert measure(build_model("vit", **TINY, merge=merge_section), settings=options).by_kind["product"] > 0


@pytest.mark.usefixtures("registered")
def test_models_whose_grid_is_not_known_are_refused():
    with pytest.raises(UserError, match="merge.method = 'random': it uses the positions of patches, and this Vis"):
        wrap(built(dynamic_img_size=True), method="random", r=4)
    with pytest.raises(UserError, match="patch_drop_rate = 0.25"):
        wrap(built(patch_drop_rate=0.25), method="random", r=4)
