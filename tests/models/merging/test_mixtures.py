"""Methods that return mixtures: their papers in loops, the contract of the soft state, and what they learn."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import adjusted_rand_score

from engine.cost.macs import measure
from models import build_model
from models.bridge import Bridge
from models.merging import (
    MERGERS,
    MergeContext,
    Tokens,
    initial_tokens,
    log_size,
    merge,
    size_bias,
    unmerge,
    unwrap,
    wrap,
)
from models.merging.tokens import apply_answer, mean_over_members
from models.merging.wrapping import blocks_of, trace
from models.settings import UserError, check
from models.settings.hybrid import HybridSettings
from tests.models.merging.test_contract import cases
from tests.models.merging.test_methods import planted
from tests.models.merging.wrapped_models import built, images

SOFT = {name: merger for name, merger in MERGERS.items() if merger.mixes}
VARIANTS = {**SOFT, "sinkhorn-sharp": SOFT["sinkhorn"].bind(sharpness=10, transports=1)}
EVERY = pytest.mark.parametrize("merger", VARIANTS.values(), ids=VARIANTS.keys())


def learned(merger, dim, leaves, seed=0):
    """What a method learns, with no parameter at its initial value."""
    torch.manual_seed(seed)
    pooling = merger.pooling(dim, leaves)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim < 2), std=0.5)
    return pooling


def mixed(merger, x, size, r):
    """The answer for patches x (B, N, C) of these sizes, and what was learned."""
    pooling = learned(merger, x.shape[2], x.shape[1] - r)
    return merger.assign(x, r, MergeContext(size, pooling=pooling)), pooling


def merge_twice(case, merger):
    """Two blocks' merging, as far as the patches go round; a hard merge before them with `random`."""
    x, grid, prefix, asked = case
    tokens, left = initial_tokens(x, grid), prod(grid)
    for wanted in asked:
        r = min(wanted, left - 1)
        left -= r
        x, tokens = merge(x, tokens, x, r, merger, prefix, pooling=learned(merger, x.shape[2], left))
    return x, tokens


# Papers


def softmax(values, axis):
    e = np.exp(values - values.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return unit * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()


def patchmerger_by_the_book(x, size, pooling):
    """Y = softmax(W LN(X)^T) X"""
    return softmax(pooling.queries.detach().double().numpy() @ layer_norm(x, pooling.norm).T, axis=1)


def sit_by_the_book(x, size, pooling):
    """A = softmax(s W2 GELU(W1 LN(X))) over the patches, Y = A^T X"""
    w1, b1, w2, b2 = (p.detach().double().numpy() for layer in (pooling.fc1, pooling.fc2) for p in layer.parameters())
    inner = torch.nn.functional.gelu(torch.from_numpy(layer_norm(x, pooling.norm) @ w1.T + b1)).numpy()
    return softmax(pooling.scale.item() * (inner @ w2.T + b2), axis=0).T


def sinkhorn_by_the_book(x, size, pooling, transports=3, sharpness=1):
    """Scales rows and columns of size x exp(cosine) in turn, columns last, so that they sum to the sizes."""
    queries = pooling.queries.detach().double().numpy()
    cosine = np.array([[q @ p / np.linalg.norm(q) / np.linalg.norm(p) for p in x] for q in queries])
    plan = size * np.exp(sharpness * cosine)
    for _ in range(transports):
        plan *= (size.sum() / len(plan) / plan.sum(1))[:, None]
        plan *= size / plan.sum(0)
    return plan


BY_THE_BOOK = {"patchmerger": patchmerger_by_the_book, "sit": sit_by_the_book, "sinkhorn": sinkhorn_by_the_book}


@pytest.mark.parametrize(("patches", "r"), [(2, 1), (9, 4), (12, 11)])
@pytest.mark.parametrize(
    ("name", "options"),
    [("patchmerger", {}), ("sit", {}), ("sinkhorn", {}), ("sinkhorn", {"transports": 1, "sharpness": 7})],
)
def test_method_equals_its_paper(name, options, patches, r):
    rng = np.random.default_rng(patches)
    x, size = rng.standard_normal((patches, 6)), rng.integers(1, 5, patches).astype(float)
    values, sizes = torch.from_numpy(x).float()[None], torch.from_numpy(size).float()[None]
    answer, pooling = mixed(SOFT[name].bind(**options), values, sizes, r)
    plan = BY_THE_BOOK[name](x, size, pooling, **options)
    weight, share = plan / plan.sum(1, keepdims=True), (plan / plan.sum(0)).T
    assert answer.weight.shape == (1, patches - r, patches)
    np.testing.assert_allclose(answer.weight[0].detach(), weight, atol=2e-6)
    np.testing.assert_allclose(answer.share[0].detach(), share, atol=2e-6)
    out, _ = apply_answer(values, Tokens(torch.arange(patches)[None], sizes), answer, 0)
    np.testing.assert_allclose(out[0].detach(), weight @ x, atol=2e-5)


def test_transports_even_out_what_the_queries_receive():
    x, size = torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(0)), torch.ones(1, 30)
    apart = []
    for transports in (1, 3, 100):
        answer, _ = mixed(SOFT["sinkhorn"].bind(sharpness=10, transports=transports), x, size, 20)
        apart.append((answer.share.sum(1) - 3).abs().max().item())
    assert apart[0] > 1.5 * apart[1] > 2 * apart[2] and apart[2] < 0.05


# The contract of the soft state


@EVERY
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_contract(merger, case):
    x, grid, prefix, asked = case
    out, tokens = merge_twice(case, merger)
    patches = prod(grid)
    left = patches - min(asked[0], patches - 1)
    left -= min(asked[1], left - 1)
    assert out.shape == (len(x), prefix + left, x.shape[2]) and out.isfinite().all()
    if left == patches:
        assert tokens.soft is None and out is x
        return
    share = tokens.soft.share
    assert share.shape == (len(x), prefix + patches, prefix + left) and share.dtype == tokens.size.dtype
    # rows sum to one, mass is conserved
    assert (share >= 0).all()
    torch.testing.assert_close(share.sum(2), torch.ones(share.shape[:2]))
    torch.testing.assert_close(share.sum(1), tokens.size, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.size.sum(1), torch.full((len(x),), prefix + float(patches)))
    assert torch.equal(tokens.index, share.argmax(-1)) and tokens.soft.active == prefix + left
    # prefix tokens: first, untouched, themselves alone
    assert torch.equal(out[:, :prefix], x[:, :prefix]) and (tokens.size[:, :prefix] == 1).all()
    itself = torch.eye(prefix + patches, prefix + left)
    assert torch.equal(share[:, :prefix], itself[:prefix].expand(len(x), -1, -1))
    assert (share[:, prefix:, :prefix] == 0).all()
    # output patches lie between the patches
    low, high = x[:, prefix:].amin(1, keepdim=True) - 1e-4, x[:, prefix:].amax(1, keepdim=True) + 1e-4
    assert (out[:, prefix:] >= low).all() and (out[:, prefix:] <= high).all()
    # pulling back is linear, and a constant stays
    a, b = torch.randn(2, *out.shape, generator=torch.Generator().manual_seed(1))
    both = 2 * unmerge(a, tokens, prefix) - 3 * unmerge(b, tokens, prefix)
    torch.testing.assert_close(unmerge(2 * a - 3 * b, tokens, prefix), both, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unmerge(torch.ones_like(a), tokens), torch.ones_like(x))
    assert size_bias(tokens).isfinite().all() and torch.equal(size_bias(tokens)[:, 0, 0], log_size(tokens))


@EVERY
def test_a_hard_state_becomes_a_soft_one(merger):
    """As where a map's index and shares are of the same state."""
    x = torch.randn(2, 1 + 9, 5, generator=torch.Generator().manual_seed(0))
    out, hard = merge(x, initial_tokens(x), x, 3, MERGERS["random"], 1)
    pooling = learned(merger, 5, 4)
    _, tokens = merge(out, hard, out, 2, merger, 1, pooling=pooling)
    inputs = initial_tokens(out)._replace(size=hard.size)
    _, alone = merge(out, inputs, out, 2, merger, 1, pooling=pooling)
    by_member = alone.soft.share.gather(1, hard.index.unsqueeze(-1).expand(-1, -1, 5))
    torch.testing.assert_close(tokens.soft.share, by_member)
    torch.testing.assert_close(tokens.size.sum(1), torch.full((2,), 10.0))


@pytest.mark.parametrize("options", [{}, {"sharpness": 10, "transports": 1}])
def test_a_token_of_sinkhorn_is_the_mean_of_what_it_received(options):
    """Over two merges; so the weighted sum of all patches is conserved, too."""
    x = torch.randn(3, 1 + 12, 6, generator=torch.Generator().manual_seed(0))
    out, tokens = merge_twice((x, (3, 4), 1, (4, 3)), SOFT["sinkhorn"].bind(**options))
    torch.testing.assert_close(out[:, 1:], mean_over_members(x[:, 1:], tokens, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"sharpness": 10, "transports": 1}])
def test_sinkhorn_divides_a_token_of_size_two_as_two_equal_ones(options):
    x = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0))
    merger, pooling = SOFT["sinkhorn"].bind(**options), learned(SOFT["sinkhorn"], 6, 3)
    twice = torch.cat([x, x[:, :1]], dim=1)
    size = torch.tensor([[2.0, *[1.0] * 7]])
    out, one = merge(x, Tokens(torch.arange(8)[None], size), x, 5, merger, 0, pooling=pooling)
    again, two = merge(twice, initial_tokens(twice), twice, 6, merger, 0, pooling=pooling)
    torch.testing.assert_close(out, again)
    torch.testing.assert_close(one.size, two.size)


@EVERY
def test_images_do_not_see_each_other_and_half_precision_is_mixed_in_fp32(merger):
    x = torch.randn(3, 1 + 9, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    case = (3, 3), 1, (4, 2)
    out, tokens = merge_twice((x, *case), merger)
    exact, state = merge_twice((x.float(), *case[:2], (4, 0)), merger)
    first, _ = merge_twice((x, *case[:2], (4, 0)), merger)
    assert out.dtype == torch.bfloat16 and torch.equal(first, exact.bfloat16())
    assert state.soft.share.dtype == tokens.soft.share.dtype == torch.float32
    for image in range(3):
        alone, own = merge_twice((x[image : image + 1], *case), merger)
        torch.testing.assert_close(alone[0], out[image], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(own.soft.share[0], tokens.soft.share[image])


@EVERY
@pytest.mark.parametrize("fill", [0.0, 0.7, 1e4])
def test_degenerate_tokens_are_finite(merger, fill):
    x = torch.full((2, 1 + 9, 6), fill, requires_grad=True)
    out, tokens = merge_twice((x, (3, 3), 1, (4, 4)), merger)
    (out.sum() + log_size(tokens).sum()).backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    torch.testing.assert_close(out, x.detach()[:, : out.shape[1]])  # a mean of equal tokens is the token
    torch.testing.assert_close(tokens.soft.share.sum(2), torch.ones(2, 10))


def test_a_patch_that_no_query_takes_is_still_somewhere():
    """Its weights are zero in fp32; its shares sum to one all the same."""
    x = torch.full((1, 4, 2), -1.0)
    x[0, 3] = torch.tensor([-1.0, 1.0])
    pooling = SOFT["patchmerger"].pooling(2, 2)
    pooling.queries.data = torch.tensor([[900.0, 0.0], [1000.0, 0.0]])
    _, tokens = merge(x, initial_tokens(x), x, 2, SOFT["patchmerger"], 0, pooling=pooling)
    answer = SOFT["patchmerger"].assign(x, 2, MergeContext(torch.ones(1, 4), pooling=pooling))
    assert (answer.weight[0, :, 3] == 0).all()
    torch.testing.assert_close(tokens.soft.share[0, 3], torch.tensor([1.0, 0.0]))


@EVERY
def test_the_bridge_draws_a_map_that_is_linear_in_the_tokens(merger):
    """Each cell of the map is the mean of the tokens that its patch is part of, by shares."""
    x = torch.randn(2, 1 + 12, 6, generator=torch.Generator().manual_seed(0))
    out, tokens = merge_twice((x, (3, 4), 1, (4, 3)), merger)
    bridge, features = Bridge(6, 5, stride=1, skip=False), torch.zeros(2, 6, 3, 4)
    drawn = bridge(out, tokens, features, 1)
    share, projected = tokens.soft.share[:, 1:], bridge.proj(out) + bridge.size_embed(log_size(tokens)[..., None])
    torch.testing.assert_close(drawn.flatten(2).mT, share @ projected)


# Planted clusters


@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize(("name", "options"), [("patchmerger", {}), ("sinkhorn", {}), ("sinkhorn", {"sharpness": 10})])
def test_queries_at_planted_clusters_find_them(name, options, noise):
    """Queries that are the clusters' means: each patch goes mostly to its own."""
    metric, labels = planted(0, noise)
    x = torch.from_numpy(metric).float()[None]
    pooling = SOFT[name].pooling(16, 8)
    centres = torch.stack([x[0, labels == label].mean(0) for label in range(8)])
    pooling.queries.data = centres - centres.mean(1, keepdim=True) if name == "patchmerger" else centres
    _, tokens = merge(x, initial_tokens(x), x, 24, SOFT[name].bind(**options), 0, pooling=pooling)
    assert adjusted_rand_score(labels, tokens.index[0]) == 1


@pytest.mark.parametrize(("name", "options"), [("patchmerger", {}), ("sit", {}), ("sinkhorn", {"sharpness": 10})])
def test_planted_clusters_are_learned(name, options):
    """By gradient alone, from what comes back of the patches after merging."""
    metric, labels = planted(1, 0.2)
    x = torch.from_numpy(metric).float()[None]
    torch.manual_seed(1)
    pooling = SOFT[name].pooling(16, 8)
    optimizer, merger = torch.optim.Adam(pooling.parameters(), lr=0.03), SOFT[name].bind(**options)
    for _ in range(150):
        out, tokens = merge(x, initial_tokens(x), x, 24, merger, 0, pooling=pooling)
        error = (unmerge(out, tokens) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert adjusted_rand_score(labels, tokens.index[0]) > 0.95
    assert error < 0.06  # the noise is 0.04


# In models

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
METHOD = pytest.mark.parametrize("method", SOFT)


@METHOD
def test_every_block_of_a_hybrid_learns(method):
    """The map hears of the last block's merging as well; under autocast as without."""
    hybrid = build_model("hybrid", **SMALL, merge={"method": method, "r": [20, 0, 24]})
    torch.nn.init.normal_(hybrid.conv_head.fc.weight)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert [block.merge.leaves for block in hybrid.vit.blocks] == [44, None, 20]
    for autocast in (False, True):
        hybrid.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = hybrid(pictures)
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1, 2])).backward()
        for name, parameter in hybrid.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    hybrid.schedule = [0, 44, 0]
    with pytest.raises(UserError, match=r"merge.r = 44: leaves 20 of 64 .* where it has learned nothing"):
        hybrid(pictures)
    hybrid.schedule = [21, 0, 0]
    with pytest.raises(UserError, match=r"merge.r = 21: leaves 43 of 64 .* it has learned to leave 44; merge as in"):
        hybrid(pictures)
    hybrid.schedule = [0, 0, 44]  # of more patches as many are made
    assert hybrid.trace(pictures).size.shape == (2, 21)


@METHOD
def test_costs_of_a_hybrid_are_those_of_its_formula(method):
    """Shares are composed from the second merge on, and the bridge multiplies by them."""
    merge = {"method": method, "r": [20, 0, 24]}
    settings = check(HybridSettings, {"name": "hybrid", **SMALL, "merge": merge})
    cost = measure(build_model(**settings.model_dump()), settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    plain = check(HybridSettings, {"name": "hybrid", **SMALL, "cnn": None, "merge": merge})
    without = measure(build_model(**plain.model_dump())).by_kind["product"]
    assert cost.by_kind["product"] - without == 64 * 44 * 20 + 64 * 21 * 32


@METHOD
def test_a_wrapped_model_meets_a_budget_keeps_what_it_learned_and_gives_it_back(method):
    model = wrap(built("deit", img_size=64), method, target_ratio=1.3)  # fails if the cost is not as predicted
    plan, before = list(blocks_of(model).plan), [layer.pooling for layer in blocks_of(model).merging]
    assert sum(plan) > 0 and all(pooling is not None for pooling in before)
    wrap(model, method, r=[*plan[:2], plan[2] + 1], prop_attn=False)
    after = [layer.pooling for layer in blocks_of(model).merging]
    assert after[:2] == before[:2] and after[2] is not before[2]
    blocks_of(model).plan = [plan[0] + 1, *plan[1:]]
    pictures = torch.zeros(1, 3, 64, 64)
    with pytest.raises(UserError, match=r"it has learned to leave"):
        model(pictures)
    wrap(model, "tome", r=2)
    assert not any("pooling" in name for name in model.state_dict())
    assert sorted(unwrap(model).state_dict()) == sorted(built("deit").state_dict())


@METHOD
def test_a_wrapped_model_in_half_precision_learns(method):
    model = wrap(built("deit").bfloat16(), method, r=4)
    model(images().bfloat16()).float().square().sum().backward()
    learned_by = dict(blocks_of(model).merging[0].pooling.named_parameters())
    assert all(p.dtype == torch.bfloat16 and p.grad.isfinite().all() and p.grad.any() for p in learned_by.values())


def test_relative_positions_follow_shares():
    """The state of a beit is soft in evaluation too: the bias is the mean by shares."""
    model = wrap(built("beit_both"), "sit", r=5)
    _, tokens = trace(model, images())
    assert model(images()).isfinite().all() and tokens.soft.share.shape == (2, 17, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "keys", "r": 3}, "merge.metric = 'keys': patchmerger compares the tokens; omit the key"),
        ({"r": {"train": [2, 4]}}, r"merge.r.train = \[2, 4\]: patchmerger learns one number of tokens; give r=n"),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError, match=words):
        wrap(built(), "patchmerger", **options)


def test_a_model_for_images_of_any_size_is_refused():
    model = built("deit", dynamic_img_size=True)
    model.patch_embed.grid_size = None
    with pytest.raises(UserError, match=r"'sit': it learns a number of tokens, and .* for no image size"):
        wrap(model, "sit", r=3)
