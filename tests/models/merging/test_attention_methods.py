"""Methods that look at attention: what it is, what they make of it, and patches that are dropped for want of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merging import MERGERS, MergeContext, Tokens, apply_assignment, initial_tokens, layer, merge, unmerge
from models.merging.layer import attention_received

PRUNE = MERGERS["topk"].bind(prune=True)


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_topk_keeps_exactly_what_is_attended(prune, seed):
    rng = np.random.default_rng(seed)
    attended = np.sort(rng.choice(32, 10, replace=False))
    attention = torch.rand(1, 32, generator=torch.Generator().manual_seed(seed)) / 100
    attention[0, attended] += 0.02
    merger, r = (PRUNE, 22) if prune else (MERGERS["topk"], 21)
    metric = torch.from_numpy(rng.standard_normal((1, 32, 8))).float()
    answer = merger.assign(metric, r, MergeContext(torch.ones(1, 32), attention))
    assert answer.index[0, attended].tolist() == list(range(10))  # in their old order
    others = np.setdiff1d(np.arange(32), attended)
    if prune:
        assert (answer.weight[0, others] == 0).all() and (answer.index[0, others] < 10).all()
    else:
        assert (answer.index[0, others] == 10).all()


def test_topk_fuses_a_merged_patch_like_its_copies():
    """A patch of size 3 gets three times the attention of each of its copies: the fused mean is that of the copies."""
    x = torch.tensor([[[5.0], [1.0], [2.0], [2.0], [2.0]]])
    apart = merge(x, initial_tokens(x), x, 3, MERGERS["topk"], 0, torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]]))[0]
    tokens = Tokens(torch.tensor([[0, 1, 2, 2, 2]]), torch.tensor([[1.0, 1.0, 3.0]]))
    together = merge(x[:, :3], tokens, x[:, :3], 1, MERGERS["topk"], 0, torch.tensor([[0.5, 0.2, 0.3]]))[0]
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(together.flatten(), torch.tensor([5.0, (0.2 * 1 + 0.3 * 2) / 0.5]))


@pytest.mark.parametrize("name", ["topk", "mctf"])
@pytest.mark.parametrize("patches", [2, 3, 9])
def test_no_attention_at_all_is_the_plain_mean(name, patches):
    """A softmax may underflow to zero, for some patches or for all."""
    x = torch.randn(1, patches, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.zeros(1, patches)
    out, tokens = merge(x, initial_tokens(x), x, patches - 1, MERGERS[name], 0, attention)
    torch.testing.assert_close(out, x.mean(1, keepdim=True))
    attention[0, 1] = 0.5  # all the mass there is
    out, _ = merge(x, initial_tokens(x), x, patches - 1, MERGERS[name], 0, attention)
    torch.testing.assert_close(out, x[:, 1:2])
    assert tokens.size.tolist() == [[patches]]


@pytest.mark.parametrize("of", ["class", "all"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("at_a_time", [1, 2, 64])
def test_attention_received_is_the_softmax_written_out(of, biased, at_a_time, monkeypatch):
    monkeypatch.setattr(layer, "QUERIES", at_a_time)
    rng = np.random.default_rng(0)
    q, k, log_size = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 5, 4)), rng.uniform(0, 2, (2, 5))
    expected = np.zeros((2, 5))
    queries = range(1) if of == "class" else range(5)
    for image in range(2):
        for head in range(3):
            for i in queries:
                scores = np.array([q[image, head, i] @ k[image, head, j] / np.sqrt(4) for j in range(5)])
                exponentials = np.exp(scores + log_size[image] * biased)
                expected[image] += exponentials / exponentials.sum() / 3 / len(queries)
    bias = torch.from_numpy(log_size)[:, None, None] if biased else None
    if biased and at_a_time == 2:
        bias = bias.expand(2, 3, 5, 5)  # a bias for each query, such as Beit's
    received = attention_received(torch.from_numpy(q).float(), torch.from_numpy(k).float(), bias, of)
    np.testing.assert_allclose(received.numpy(), expected, rtol=1e-5)


# Pruning


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), patches=st.integers(2, 16), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_pruning_drops_mass_and_leaves_the_rest_alone(batch, patches, seed, data):
    """Two blocks. Whatever became of a patch, the token that it points to is alive, and is one of the inputs."""
    first = data.draw(st.integers(1, patches - 1))
    second = data.draw(st.integers(0, patches - first - 1))
    x = torch.randn(batch, 1 + patches, 6, generator=torch.Generator().manual_seed(seed))
    out, tokens = x, initial_tokens(x)
    for r in (first, second):
        attention = out.square().mean(-1).softmax(-1)
        out, tokens = merge(out, tokens, out, r, PRUNE, 1, attention)
    left = 1 + patches - first - second
    assert out.shape[1] == left and torch.equal(tokens.size, torch.ones(batch, left))
    assert (tokens.index >= 0).all() and (tokens.index < left).all() and (tokens.index[:, 1:] > 0).all()
    for image in range(batch):
        strongest = x[image, 1:].square().mean(-1).topk(left - 1).indices.sort().values
        assert torch.equal(out[image], torch.cat([x[image, :1], x[image, 1:][strongest]]))
        assert torch.equal(tokens.index[image, 1:][strongest], torch.arange(1, left))


def test_a_pruned_patch_shows_the_most_similar_that_lives():
    """Patch 1 is dropped for patch 0, then patch 0 for patch 3: on the map both show patch 3."""
    x = torch.tensor([[[4.0, 1.0], [4.0, 0.9], [-5.0, 1.0], [3.0, 3.0]]])
    out, tokens = merge(x, initial_tokens(x), x, 1, PRUNE, 0, torch.tensor([[0.2, 0.1, 0.3, 0.4]]))
    assert tokens.index.tolist() == [[0, 0, 1, 2]] and tokens.size.tolist() == [[1, 1, 1]]
    out, tokens = merge(out, tokens, out, 1, PRUNE, 0, torch.tensor([[0.1, 0.3, 0.6]]))
    assert tokens.index.tolist() == [[1, 1, 0, 1]] and torch.equal(unmerge(out, tokens)[:, :2], x[:, [3, 3]])


def test_pruned_sizes_are_those_of_the_kept():
    tokens = Tokens(torch.tensor([[0, 0, 1, 2, 2, 2]]), torch.tensor([[2.0, 1.0, 3.0]]))
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    answer = PRUNE.assign(x, 1, MergeContext(tokens.size, torch.tensor([[0.2, 0.1, 0.5]])))
    out, after = apply_assignment(x, tokens, answer, prefix=0)
    assert after.size.tolist() == [[2.0, 3.0]] and out.flatten().tolist() == [1.0, 3.0]


def test_diffrate_merges_the_second_least_attended_and_drops_the_least():
    """Patches 1 and 3 receive least; half of them is dropped, patch 3, and shown as the most similar that is kept."""
    x = torch.tensor([[[4.0, 0.0], [3.0, 0.3], [0.0, 2.0], [0.1, 5.0]]])
    attention = torch.tensor([[0.4, 0.1, 0.3, 0.05]])
    out, tokens = merge(x, initial_tokens(x), x, 2, MERGERS["diffrate"].bind(pruned=0.5), 0, attention)
    assert tokens.index.tolist() == [[0, 0, 1, 1]] and tokens.size.tolist() == [[2, 1]]
    torch.testing.assert_close(out, torch.tensor([[[3.5, 0.15], [0.0, 2.0]]]))
    whole, tokens = merge(x, initial_tokens(x), x, 2, MERGERS["diffrate"], 0, attention)
    assert tokens.size.tolist() == [[2, 2]]
    torch.testing.assert_close(whole, torch.tensor([[[3.5, 0.15], [0.05, 3.5]]]))


@pytest.mark.parametrize("fill", [0.0, 0.7])
@pytest.mark.parametrize("patches", [2, 3, 9])
def test_pruning_equal_patches_is_finite_and_keeps_the_first(fill, patches):
    x = torch.full((2, patches, 4), fill)
    out, tokens = merge(x, initial_tokens(x), x, patches - 1, PRUNE, 0, torch.full((2, patches), 0.1))
    assert torch.equal(out, x[:, :1]) and (tokens.index == 0).all() and (tokens.size == 1).all()
