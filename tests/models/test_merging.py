"""The contract of merging, and ToMe against a literal transcription of its paper."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.merging import (
    MERGERS,
    MergeContext,
    Tokens,
    apply_assignment,
    effective_schedule,
    initial_tokens,
    merge,
    size_bias,
    unmerge,
)


@st.composite
def cases(draw):
    """Tokens x (B, P + N, C), the prefix P, and two amounts to remove, one after the other."""
    batch, prefix, patches = draw(st.integers(1, 4)), draw(st.integers(0, 2)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = torch.from_numpy(rng.standard_normal((batch, prefix + patches, 6)).astype(np.float32))
    first = draw(st.integers(0, patches // 2))
    second = draw(st.integers(0, (patches - first) // 2))
    return x, prefix, (first, second)


def merge_twice(x, prefix, amounts, method):
    tokens = initial_tokens(x)
    for r in amounts:
        x, tokens = merge(x, tokens, x, r, method, prefix)
    return x, tokens


@pytest.mark.parametrize("method", MERGERS.values(), ids=MERGERS.keys())
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_contract(method, case):
    x, prefix, amounts = case
    out, tokens = merge_twice(x, prefix, amounts, method)
    left = x.shape[1] - sum(amounts)
    assert out.shape == (x.shape[0], left, x.shape[2]) and tokens.index.shape == x.shape[:2]

    # size is bincount(index), and nothing is lost
    counted = torch.stack([torch.bincount(row, minlength=left) for row in tokens.index])
    assert torch.equal(tokens.size, counted.float())
    assert (tokens.size >= 1).all()
    # the size-weighted sum is conserved
    torch.testing.assert_close((out * tokens.size[..., None]).sum(1), x.sum(1), atol=1e-4, rtol=1e-4)
    # each output token is the mean of its inputs
    for image in range(len(x)):
        for token in range(left):
            mean = x[image][tokens.index[image] == token].mean(0)
            torch.testing.assert_close(out[image, token], mean, atol=1e-5, rtol=1e-4)
    # prefix tokens: first, untouched, and never a target
    assert torch.equal(out[:, :prefix], x[:, :prefix])
    assert torch.equal(tokens.index[:, :prefix], torch.arange(prefix).expand(len(x), -1))
    assert (tokens.size[:, :prefix] == 1).all()
    # unmerging gives each patch its token
    rows = unmerge(out, tokens, prefix)
    for image in range(len(x)):
        assert torch.equal(rows[image], out[image][tokens.index[image, prefix:]])


@pytest.mark.parametrize("method", MERGERS.values(), ids=MERGERS.keys())
@settings(max_examples=30, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_images_do_not_see_each_other(method, case, seed):
    x, prefix, amounts = case
    _, together = merge_twice(x, prefix, amounts, method)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    _, shuffled = merge_twice(x[order], prefix, amounts, method)
    assert torch.equal(shuffled.index, together.index[order])
    for image in range(len(x)):
        _, alone = merge_twice(x[image : image + 1], prefix, amounts, method)
        assert torch.equal(alone.index[0], together.index[image])


@pytest.mark.parametrize("method", MERGERS.values(), ids=MERGERS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", ["zero", "equal"])
def test_degenerate_tokens_are_finite_and_deterministic(method, dtype, fill):
    x = torch.zeros(2, 9, 4, dtype=dtype) if fill == "zero" else torch.full((2, 9, 4), 0.7, dtype=dtype)
    (out, tokens), (again, same) = (merge_twice(x, 1, (3, 2), method) for _ in range(2))
    assert out.dtype == dtype and out.isfinite().all() and torch.equal(out, again)
    assert torch.equal(tokens.index, same.index)


def test_counting_goes_beyond_what_half_precision_can_count():
    """3,000 equal fp16 tokens into one: counted in fp16 the size would stick at 2,048, in bf16 at 256."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((1, 3000, 2), 0.5, dtype=dtype)
        tokens = initial_tokens(x)
        while x.shape[1] > 1:
            x, tokens = merge(x, tokens, x, x.shape[1] // 2, MERGERS["tome"], prefix=0)
        assert tokens.size.tolist() == [[3000.0]] and x.tolist() == [[[0.5, 0.5]]]


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_the_size_bias_is_attention_over_the_duplicated_tokens(case):
    x, prefix, amounts = case
    out, tokens = merge_twice(x.double(), prefix, amounts, MERGERS["tome"])
    if not tokens.merged:
        assert size_bias(tokens) is None
        return
    bias = tokens.size.double().log()[:, None, :]
    torch.testing.assert_close(size_bias(tokens)[:, 0], bias.float())
    query = torch.linspace(-1, 1, 6, dtype=torch.float64).expand(len(x), 1, 6)
    merged = ((query @ out.mT) + bias).softmax(-1) @ out
    copies = unmerge(out, tokens)
    torch.testing.assert_close(merged, (query @ copies.mT).softmax(-1) @ copies, atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_the_mean():
    x = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out, tokens = merge_twice(x, 1, (2, 1), MERGERS["tome"])
    out[0, -1].sum().backward()
    share = (tokens.index[0] == out.shape[1] - 1).float() / tokens.size[0, -1]
    torch.testing.assert_close(x.grad[0], share[:, None].expand(-1, 3))


def tome_by_the_book(metric: np.ndarray, r: int) -> list[list[int]]:
    """Section 3 of the paper, step by step, in loops: which input patches make up each output patch."""
    destinations, sources = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))  # 1. partition in two
    unit = [vector / np.linalg.norm(vector) for vector in metric]
    edges = []
    for s in sources:  # 2. an edge from each source to its most similar destination
        similarity = [unit[s] @ unit[d] for d in destinations]
        edges.append((max(similarity), s, destinations[int(np.argmax(similarity))]))
    strongest = sorted(edges, key=lambda edge: -edge[0])[:r]  # 3. keep the r strongest edges
    partner = {s: d for _, s, d in strongest}
    kept = [[s] for s in sources if s not in partner]  # 4. merge what is connected; 5. put the two sets together
    return kept + [[d] + [s for s in sources if partner.get(s) == d] for d in destinations]


@settings(max_examples=60, deadline=None)
@given(patches=st.integers(2, 20), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_tome_equals_its_paper(patches, seed, data):
    r = data.draw(st.integers(0, patches // 2))
    metric = np.random.default_rng(seed).standard_normal((patches, 5))
    answer = MERGERS["tome"](torch.from_numpy(metric).float()[None], r, MergeContext(torch.ones(1, patches)))
    groups = [np.flatnonzero(answer.index[0].numpy() == i).tolist() for i in range(answer.count)]
    assert groups == [sorted(group) for group in tome_by_the_book(metric, r)]


def test_ties_go_to_the_lower_position():
    metric = torch.ones(1, 8, 3)
    answer = MERGERS["tome"](metric, 2, MergeContext(torch.ones(1, 8)))
    # sources 1 and 3 go first, both into destination 0; sources 5 and 7 stay
    assert answer.index.tolist() == [[2, 2, 3, 2, 4, 0, 5, 1]]


def test_tome_finds_planted_pairs():
    """Patches 2i and 2i + 1 are one vector with noise: every one of them is merged with its twin."""
    rng = np.random.default_rng(0)
    twins = np.repeat(rng.standard_normal((16, 32)), 2, axis=0) + 0.05 * rng.standard_normal((32, 32))
    answer = MERGERS["tome"](torch.from_numpy(twins).float()[None], 16, MergeContext(torch.ones(1, 32)))
    assert answer.count == 16 and torch.equal(answer.index[0, 0::2], answer.index[0, 1::2])


def test_applying_an_assignment_weighs_by_size():
    x = torch.tensor([[[0.0], [1.0], [4.0]]])
    tokens = Tokens(torch.tensor([[0, 1, 2, 2, 2]]), torch.tensor([[1.0, 1.0, 3.0]]))
    answer = MERGERS["tome"](torch.ones(1, 2, 1), 1, MergeContext(tokens.size[:, 1:]))
    out, after = apply_assignment(x, tokens, answer, prefix=1)
    assert out.flatten().tolist() == [0.0, (1 * 1 + 3 * 4) / 4]
    assert after.size.tolist() == [[1.0, 4.0]] and after.index.tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("r", "patches", "expected"),
    [(4, 64, [4] * 6), ([8, 0, 6], 64, [8, 0, 6]), (40, 64, [32, 16, 8]), (5, 1, [0, 0, 0]), (1, 3, [1, 1, 0])],
)
def test_effective_schedule(r, patches, expected):
    assert effective_schedule(r, len(expected), patches) == expected
