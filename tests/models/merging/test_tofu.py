"""Token Fusion: means that keep the greatest norm, blocks that prune, and what both leave alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merging import MERGERS, Assignment, MergeContext, Tokens, apply_assignment, initial_tokens, merge, wrap
from models.merging.settings import MergeSettings
from models.merging.wrapping import blocks_of
from models.settings import UserError, check
from tests.models.merging.wrapped_models import built, images

TOFU = MERGERS["tofu"]
PRUNE = TOFU.bind(prune_until=0.5)


def mlerp(vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The formula, for vectors (n, C) and weights (n,)."""
    mean = (vectors * weights[:, None]).sum(0) / weights.sum()
    return mean / mean.norm() * max(vector.norm() for vector in vectors)


@pytest.mark.parametrize("seed", range(5))
def test_values_and_gradients_are_those_of_the_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 5, (2, 12), generator=generator).float()
    index = torch.randint(0, 4, (2, 11), generator=generator)
    index[:, :4] = torch.arange(4)  # none is empty
    tokens = Tokens(initial_tokens(x).index, size)
    out, state = apply_assignment(x, tokens, Assignment(index, 4, keep_norm=True), prefix=1)
    own = [[state.index[image] == token for token in range(5)] for image in range(2)]
    expected = torch.stack(
        [torch.stack([mlerp(x[image][one], size[image][one].double()) for one in own[image]]) for image in range(2)]
    )
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    direction = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((value * direction).sum(), x, retain_graph=True)[0] for value in (out, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(state.size, torch.zeros(2, 5).scatter_add(1, state.index, size))


def test_a_shorter_mean_is_as_long_as_the_longest():
    """Two vectors at a right angle, of lengths 3 and 4: their mean is 2.5 long."""
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [7.0, 7.0]]])
    answer = Assignment(torch.tensor([[0, 0, 1]]), 2, keep_norm=True)
    out, _ = apply_assignment(x, initial_tokens(x), answer, prefix=0)
    torch.testing.assert_close(out[0, 0], torch.tensor([1.5, 2.0]) / 2.5 * 4)
    assert torch.equal(out[0, 1], x[0, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vectors", [[[0.0, 0.0], [0.0, 0.0]], [[2.0, -1.0], [-2.0, 1.0]], [[2.0, 0.0], [-2.0, 1e-7]]])
def test_a_mean_without_a_direction_is_finite_and_so_is_its_gradient(vectors, dtype):
    x = torch.tensor([[*vectors, [1.0, 1.0]]], dtype=dtype, requires_grad=True)
    out, _ = apply_assignment(x, initial_tokens(x), Assignment(torch.tensor([[0, 0, 1]]), 2, keep_norm=True), prefix=0)
    out.float().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all() and out[0, 0].norm() <= 2.3
    assert torch.equal(out[0, 1], x[0, 2])


def test_dropped_members_lend_no_norm():
    x = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 2.0]]])
    answer = Assignment(torch.tensor([[0, 0, 0]]), 1, torch.tensor([[1.0, 0.0, 1.0]]), keep_norm=True)
    out, tokens = apply_assignment(x, initial_tokens(x), answer, prefix=0)
    torch.testing.assert_close(out[0, 0], torch.tensor([1.0, 2.0]) / 5**0.5 * 2)
    assert tokens.size.tolist() == [[2.0]]


# Pruning


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), patches=st.integers(2, 16), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_early_blocks_drop_the_sources_that_later_ones_merge(batch, patches, seed, data):
    r = data.draw(st.integers(1, patches // 2))
    x = torch.randn(batch, 1 + patches, 6, generator=torch.Generator().manual_seed(seed))
    size = 1 + torch.arange(1 + patches).float().expand(batch, -1) % 3
    state = Tokens(initial_tokens(x).index, size)
    early, late = (merge(x, state, x, r, PRUNE, 1, depth=depth) for depth in (0.25, 0.5))
    assert torch.equal(early[1].index, late[1].index)  # on a map both show the destination
    for image in range(batch):
        kept = [i for i in range(1 + patches) if any(torch.equal(x[image, i], token) for token in early[0][image])]
        assert len(kept) == 1 + patches - r and {0, *range(1, 1 + patches, 2)} <= set(kept)
        assert early[1].size[image].sum() == size[image, kept].sum()  # the mass of the others is lost
    assert torch.equal(late[1].size.sum(1), size.sum(1))


def test_pruning_keeps_every_number_finite_where_patches_are_equal():
    for fill in (0.0, 0.7):
        x = torch.full((2, 9, 4), fill)
        out, tokens = merge(x, initial_tokens(x), x, 4, PRUNE, 0, depth=0.0)
        assert torch.equal(out, x[:, :5]) and (tokens.size == 1).all()


def test_the_first_blocks_of_a_model_prune():
    model = wrap(built(), method="tofu", r=2, prune_until=0.5)  # of 3 blocks the first two: 0 and 1/3
    states = []
    for layer in blocks_of(model).merging:
        layer.register_forward_hook(lambda module, given, output: states.append(output[1]))
    assert model(images()).isfinite().all()
    assert [int(state.size[0].sum()) for state in states] == [15, 13, 13]


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_the_blocks_that_prune_are_a_share(share):
    with pytest.raises(UserError, match="prune_until"):
        check(MergeSettings, {"method": "tofu", "prune_until": share}, "merge")


def test_options_of_the_matching_do_not_change_it():
    metric = torch.randn(2, 11, 4, generator=torch.Generator().manual_seed(0))
    context = MergeContext(torch.ones(2, 11), depth=0.3)
    expected = MERGERS["tome"].assign(metric, 3, context)
    for merger in (TOFU, PRUNE, TOFU.bind(norm=False)):
        answer = merger.assign(metric, 3, context)
        assert torch.equal(answer.index, expected.index) and answer.count == expected.count
