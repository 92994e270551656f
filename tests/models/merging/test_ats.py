"""Adaptive Token Sampling, against the sampling written out and against patches that are planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.merging import MERGERS, MergeContext, initial_tokens, merge
from models.merging.contract import Adaptive
from models.merging.layer import Attended, MergeLayer, Scores, attention_received, value_norms
from models.settings import UserError

ATS = MERGERS["ats"]
PAPER = ATS.bind(adaptive=True, prune=True)


def drawn(significance, samples):
    """The patches that the samples hit, one after another: from the least significant patch to the most."""
    share = np.asarray(significance, np.float64) / np.sum(significance, dtype=np.float64)
    order = np.argsort(share, kind="stable")
    hit = []
    for k in range(1, samples + 1):
        u, total, nearest, distance = (2 * k - 1) / (2 * samples), 0.0, None, np.inf
        for patch in order:
            total += share[patch]
            if abs(total - u) < distance:
                nearest, distance = patch, abs(total - u)
        hit.append(int(nearest))
    return hit


@pytest.mark.parametrize("samples", [1, 4, 9, 19])
@pytest.mark.parametrize("seed", range(3))
def test_the_sampled_patches_are_those_of_the_sampling_written_out(samples, seed):
    rng = np.random.default_rng(seed)
    significance = rng.exponential(size=20).astype(np.float32) ** 2
    x = torch.from_numpy(rng.standard_normal((1, 20, 4)).astype(np.float32))
    hit = drawn(significance, samples)
    attention = torch.from_numpy(significance)[None]
    out, tokens = merge(x, initial_tokens(x), x, Adaptive(samples), PAPER, 0, attention)
    assert torch.equal(out[0], x[0, sorted(set(hit))]) and tokens.left == (len(set(hit)),)

    exactly, _ = merge(x, initial_tokens(x), x, 20 - samples, ATS.bind(prune=True), 0, attention)
    others = [patch for patch in np.argsort(-significance, kind="stable") if patch not in hit]
    filled = sorted([*set(hit), *others[: samples - len(set(hit))]])
    assert torch.equal(exactly[0], x[0, filled])


def test_significant_patches_are_kept_and_of_the_others_a_few():
    """Four patches have nine tenths of the significance. Samples that fall on them coincide."""
    attention = torch.full((2, 40), 0.1 / 36)
    planted = torch.tensor([[3, 11, 20, 38], [0, 1, 2, 39]])
    attention.scatter_(1, planted, 0.225)
    x = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0))
    answers = [PAPER.adaptive(x[i : i + 1], 20, MergeContext(torch.ones(1, 40), attention[i : i + 1])) for i in (0, 1)]
    for answer, significant in zip(answers, planted):
        kept = answer.weight[0].nonzero().flatten().tolist()
        assert set(significant.tolist()) <= set(kept) and 5 <= len(kept) <= 8


def test_equal_significance_keeps_patches_at_equal_distances():
    x = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    out, _ = merge(x, initial_tokens(x), x, Adaptive(3), PAPER, 0, torch.full((1, 12), 0.05))
    assert torch.equal(out[0], x[0, [1, 5, 9]])  # C = 2/12, 6/12, 10/12


def test_what_is_not_sampled_merges_into_the_most_similar():
    attention = torch.tensor([[0.5, 0.01, 0.4, 0.02]])
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.2], [0.0, 1.0], [0.1, 2.0]]])
    out, tokens = merge(x, initial_tokens(x), x, 2, ATS, 0, attention)
    assert tokens.index.tolist() == [[0, 0, 1, 1]] and tokens.size.tolist() == [[2, 2]]
    torch.testing.assert_close(out, torch.tensor([[[2.0, 0.1], [0.05, 1.5]]]))


@pytest.mark.parametrize("attention", [0.0, 1e-30])
def test_no_attention_at_all_is_equal_significance(attention):
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    out, tokens = merge(x, initial_tokens(x), x, 6, ATS, 0, torch.full((2, 9), attention))
    assert out.isfinite().all() and tokens.size.sum(1).tolist() == [9, 9]


def test_significance_is_attention_times_the_norm_of_the_values_of_all_heads():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 6, 4, generator=generator)  # (B, heads, T, head_dim) each
    seen = []

    def look(metric, r, context):
        seen.append(context.attention)
        return ATS.assign(metric, r, context)

    layer = MergeLayer(ATS, "keys", 1, 0.0, 12, 4)
    layer.merger = MERGERS["ats"].bind()
    object.__setattr__(layer.merger, "assign", look)
    x = torch.randn(2, 6, 12, generator=generator)
    layer(x, initial_tokens(x), 2, Attended(x, lambda: Scores(q, k, None, v=v)))
    joined = v.transpose(1, 2).reshape(2, 6, 12)
    expected = attention_received(q, k, None, "class") * joined.norm(dim=-1)
    torch.testing.assert_close(seen[0], expected[:, 1:])
    torch.testing.assert_close(value_norms(v), joined.norm(dim=-1))
    with pytest.raises(UserError, match="needs the values of attention"):
        layer(x, initial_tokens(x), 2, Attended(x, lambda: Scores(q, k, None)))
