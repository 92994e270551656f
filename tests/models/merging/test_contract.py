"""The contract of merging by an assignment, for every entry of MERGERS but those of test_mixtures.py."""

from math import prod

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
from models.merging.tokens import mean_positions
from tests.paths import CONFIGS

# Every method, and every option that changes what a method does to all patches. Pruning has tests of its own
# (test_attention_methods.py, test_tofu.py, test_dynamicvit.py).
VARIANTS = {
    **{name: merger for name, merger in MERGERS.items() if merger.pooling is None},
    "tome-kth3": MERGERS["tome"].bind(kth=3),
    "tofu-mean": MERGERS["tofu"].bind(norm=False),
    "dpc_knn-neighbours2": MERGERS["dpc_knn"].bind(neighbours=2),
    "kmedoids-size": MERGERS["kmedoids"].bind(importance="size"),
    "kmedoids-iterations0": MERGERS["kmedoids"].bind(iterations=0),
    "atc-complete": MERGERS["atc"].bind(linkage="complete"),
    "atc-single": MERGERS["atc"].bind(linkage="single"),
    "facility_location-greedy": MERGERS["facility_location"].bind(form="greedy"),
    "facility_location-stochastic": MERGERS["facility_location"].bind(form="stochastic"),
    "dynamicvit-fused": MERGERS["dynamicvit"].bind(prune=False),
}
EVERY = pytest.mark.parametrize("merger", VARIANTS.values(), ids=VARIANTS.keys())


def learned(merger, dim):
    """The part that a method learns, as it is drawn; None where there is none."""
    torch.manual_seed(0)
    return merger.pooling and merger.pooling(dim, 1)


@st.composite
def cases(draw):
    """Tokens x (B, P + N, C) on a grid, the prefix P, and what two blocks are asked to remove; often too much."""
    batch, prefix = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    grid = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    patches = prod(grid)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = torch.from_numpy(rng.standard_normal((batch, prefix + patches, 6)).astype(np.float32))
    return x, grid, prefix, (draw(st.integers(0, patches)), draw(st.integers(0, patches)))


def merge_twice(case, merger, dtype=torch.float32):
    """Two blocks' merging. The attention that patches get is made from them, so that it is each image's own."""
    x, grid, prefix, asked = case
    x = x.to(dtype)
    tokens = initial_tokens(x, grid)
    for block, r in enumerate(effective_schedule(asked, prod(grid), merger, grid)):
        attention = x.float().square().mean(-1).softmax(-1)
        part = learned(merger, x.shape[2])
        x, tokens = merge(x, tokens, x, r, merger, prefix, attention, depth=block / 2, pooling=part)
    return x, tokens


@EVERY
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_contract(merger, case):
    holds_the_contract(merger, case)


def holds_the_contract(merger, case):
    x, grid, prefix, asked = case
    out, tokens = merge_twice(case, merger)
    left = x.shape[1] - sum(effective_schedule(asked, prod(grid), merger, grid))
    assert out.shape == (x.shape[0], left, x.shape[2]) and tokens.index.shape == x.shape[:2]
    assert out.isfinite().all()

    # size is bincount(index), and nothing is lost
    counted = torch.stack([torch.bincount(row, minlength=left) for row in tokens.index])
    assert torch.equal(tokens.size, counted.float())
    assert (tokens.size >= 1).all() and (tokens.size.sum(1) == x.shape[1]).all()
    # prefix tokens: first, untouched, and never a target
    assert torch.equal(out[:, :prefix], x[:, :prefix])
    assert torch.equal(tokens.index[:, :prefix], torch.arange(prefix).expand(len(x), -1))
    assert (tokens.size[:, :prefix] == 1).all()
    # unmerging gives each patch its token
    rows = unmerge(out, tokens, prefix)
    for image in range(len(x)):
        assert torch.equal(rows[image], out[image][tokens.index[image, prefix:]])
    # a method that keeps a grid says which
    assert tokens.grid is None or prod(tokens.grid) == left - prefix
    assert merger.shrink is None or tokens.grid is not None


@EVERY
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_the_weighted_sum_is_conserved_and_each_token_is_its_inputs_mean(merger, case):
    """Of one merge, with the weights that the method gives: size x weight."""
    x, grid, prefix, asked = case
    r = effective_schedule(asked[:1], prod(grid), merger, grid)[0]
    if r == 0:
        return  # no method is called then
    size = torch.ones(x.shape[:2])
    size[:, prefix:] += torch.arange(prod(grid)) % 3  # as if merged before
    attention = x.square().mean(-1).softmax(-1)
    position = mean_positions(initial_tokens(x, grid), prefix)
    part = learned(merger, x.shape[2])
    context = MergeContext(size[:, prefix:], attention[:, prefix:], grid, position=position, pooling=part)
    answer = merger.assign(x[:, prefix:], r, context)
    assert answer.count == prod(grid) - r
    index = initial_tokens(x).index
    out, tokens = apply_assignment(x, Tokens(index, size, grid), answer, prefix)
    weight = size.clone()
    if answer.weight is not None:
        assert (answer.weight > 0).all()
        weight[:, prefix:] *= answer.weight
    assert answer.keep_norm == keeps_norm(merger)
    if answer.keep_norm:  # tokens are longer than their means, which conserve the sum: they have their direction
        assert_direction_of_the_mean_and_greatest_norm(x, out, tokens, weight)
        out, tokens = apply_assignment(x, Tokens(index, size, grid), answer._replace(keep_norm=False), prefix)
    total = torch.zeros(out.shape[:2]).scatter_add(1, tokens.index, weight)
    torch.testing.assert_close((out * total[..., None]).sum(1), (x * weight[..., None]).sum(1), atol=1e-4, rtol=1e-4)
    for image in range(len(x)):
        for token in range(out.shape[1]):
            own = tokens.index[image] == token
            mean = (x[image][own] * weight[image][own, None]).sum(0) / weight[image][own].sum()
            torch.testing.assert_close(out[image, token], mean, atol=1e-5, rtol=1e-4)
            assert tokens.size[image, token] == size[image][own].sum()


def keeps_norm(merger):
    """Whether a method scales means to their members' greatest norm."""
    return merger.options.get("norm", False)


def assert_direction_of_the_mean_and_greatest_norm(x, out, tokens, weight):
    for image in range(len(x)):
        for token in range(out.shape[1]):
            own = tokens.index[image] == token
            mean = (x[image][own] * weight[image][own, None]).sum(0)
            greatest = x[image][own].norm(dim=1).max()
            torch.testing.assert_close(out[image, token].norm(), greatest, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(out[image, token], mean / mean.norm() * greatest, atol=1e-4, rtol=1e-3)
            assert own.sum() > 1 or torch.equal(out[image, token], x[image][own][0])


@EVERY
def test_r0_changes_nothing(merger):
    x = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    out, tokens = merge_twice((x, (3, 3), 1, (0, 0)), merger)
    assert torch.equal(out, x) and torch.equal(tokens.index, initial_tokens(x).index) and not tokens.merged


@EVERY
@settings(max_examples=12, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_images_do_not_see_each_other(merger, case, seed):
    x, *rest = case
    out, together = merge_twice(case, merger)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    permuted, shuffled = merge_twice((x[order], *rest), merger)
    assert torch.equal(shuffled.index, together.index[order])
    torch.testing.assert_close(permuted, out[order], atol=1e-6, rtol=0)
    for image in range(len(x)):
        _, alone = merge_twice((x[image : image + 1], *rest), merger)
        assert torch.equal(alone.index[0], together.index[image])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", ["zero", "equal"])
@pytest.mark.parametrize("patches", [1, 2, 3, 9])
def test_degenerate_tokens_are_finite_and_deterministic(merger, dtype, fill, patches):
    x = torch.zeros(2, 1 + patches, 4) if fill == "zero" else torch.full((2, 1 + patches, 4), 0.7)
    case = x, (1, patches), 1, (3, 1000)
    (out, tokens), (again, same) = (merge_twice(case, merger, dtype) for _ in range(2))
    assert out.dtype == dtype and out.isfinite().all() and torch.equal(out, again)
    assert torch.equal(tokens.index, same.index)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_fp32(merger, dtype):
    """The assignment of half-precision tokens is that of the same numbers in fp32; means are rounded once."""
    x = torch.randn(2, 17, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    asked = (12, 0)
    half, exact = (merge_twice((part, (4, 4), 1, asked), merger, part.dtype) for part in (x, x.float()))
    assert half[0].dtype == dtype and torch.equal(half[1].index, exact[1].index)
    assert torch.equal(half[0], exact[0].to(dtype))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_method_takes_what_its_entry_says_at_most(name):
    """Asked for too much: exactly the most that its entry in MERGERS states, and the result holds the contract."""
    merger = VARIANTS[name]
    for side in (4, 3):
        patches = side * side
        if merger.shrink is None:
            most = merger.at_most(patches)
        else:
            most = patches - prod(merger.shrink((side, side), patches))
        assert effective_schedule([1000], patches, merger, (side, side)) == [most]
        x = torch.randn(2, patches, 6, generator=torch.Generator().manual_seed(0))
        holds_the_contract(merger, (x, (side, side), 0, (1000, 0)))


PAGE = (CONFIGS.parent / "docs" / "merging.md").read_text()


def table_row(name, merger):
    """What the row of a method in the table of docs/merging.md has to contain, from its entry in MERGERS."""
    limit = "what the grid allows"
    if merger.shrink is None:
        limits = {"N - 1": lambda n: n - 1, "N / 2": lambda n: n // 2, "0": lambda n: 0}
        limit = next(text for text, most in limits.items() if all(merger.at_most(n) == most(n) for n in range(1, 20)))
    uses = []
    if merger.attends is not None:
        uses.append(f"**{merger.attends} attention**")
    if merger.metric == "learned":
        uses.append("learned metric")
    if merger.pooling is not None:
        uses.append("learned tokens" if merger.mixes else "a learned prediction")
    if merger.shrink is not None:
        uses.append("the grid")
    if merger.position:
        uses.append("positions")
    return uses, limit, [f"`{option}`" for option in merger.options]


@pytest.mark.parametrize("name", MERGERS)
def test_the_table_of_docs_merging_md_has_every_method(name):
    uses, limit, options = table_row(name, MERGERS[name])
    summary = MERGERS[name].assign.__doc__.splitlines()[0]
    wanted = f"| `{name}` | {summary} | {', '.join(uses)} | {limit} | {', '.join(options)} |"
    table = PAGE[PAGE.index("## Methods") :].split("\n\n")[2]
    row = next((line for line in table.splitlines() if line.startswith(f"| `{name}`")), None)
    assert row is not None, f"add a row to the table of methods in docs/merging.md, such as: {wanted}"
    _, _, _, row_uses, row_limit, row_options, _ = (cell.strip() for cell in row.split("|"))
    assert row_limit == limit and all(part in row_uses for part in uses), f"docs/merging.md: should be like {wanted}"
    assert all(part in row_options for part in options), f"docs/merging.md: should be like {wanted}"


def test_counting_goes_beyond_what_half_precision_can_count():
    """3,000 equal fp16 tokens into one: counted in fp16 the size would stick at 2,048, in bf16 at 256."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((1, 3000, 2), 0.5, dtype=dtype)
        tokens = initial_tokens(x)
        while x.shape[1] > 1:
            x, tokens = merge(x, tokens, x, x.shape[1] // 2, MERGERS["tome"], prefix=0)
        assert tokens.size.tolist() == [[3000.0]] and x.tolist() == [[[0.5, 0.5]]]


@EVERY
@settings(max_examples=10, deadline=None)
@given(case=cases())
def test_the_size_bias_is_attention_over_the_duplicated_tokens(merger, case):
    x = case[0]
    out, tokens = merge_twice(case, merger, torch.float64)
    if not tokens.merged:
        assert size_bias(tokens) is None
        return
    bias = tokens.size.double().log()[:, None, :]
    torch.testing.assert_close(size_bias(tokens)[:, 0], bias.float())
    query = torch.linspace(-1, 1, 6, dtype=torch.float64).expand(len(x), 1, 6)
    merged = ((query @ out.mT) + bias).softmax(-1) @ out
    copies = unmerge(out, tokens)
    torch.testing.assert_close(merged, (query @ copies.mT).softmax(-1) @ copies, atol=1e-6, rtol=1e-5)


@EVERY
def test_gradients_are_those_of_the_mean(merger):
    """Each input gets its share of its output token's gradient, and all of them get a finite one.

    Where norms are kept, the gradient is not a share; test_tofu.py compares it with the formula's.
    """
    x = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out, tokens = merge_twice((x, (3, 3), 1, (4, 3)), merger)
    out.sum().backward()
    assert x.grad.isfinite().all()
    if keeps_norm(merger):
        return
    total = torch.zeros(out.shape[:2]).scatter_add(1, tokens.index, x.grad[..., 0])
    torch.testing.assert_close(total, torch.ones_like(total))  # the weights of a mean sum to one


def test_ties_go_to_the_lower_position():
    metric = torch.ones(1, 8, 3)
    answer = MERGERS["tome"].assign(metric, 2, MergeContext(torch.ones(1, 8)))
    # sources 1 and 3 go first, both into destination 0; sources 5 and 7 stay
    assert answer.index.tolist() == [[2, 2, 3, 2, 4, 0, 5, 1]]


def test_applying_an_assignment_weighs_by_size():
    x = torch.tensor([[[0.0], [1.0], [4.0]]])
    tokens = Tokens(torch.tensor([[0, 1, 2, 2, 2]]), torch.tensor([[1.0, 1.0, 3.0]]))
    answer = MERGERS["tome"].assign(torch.ones(1, 2, 1), 1, MergeContext(tokens.size[:, 1:]))
    out, after = apply_assignment(x, tokens, answer, prefix=1)
    assert out.flatten().tolist() == [0.0, (1 * 1 + 3 * 4) / 4]
    assert after.size.tolist() == [[1.0, 4.0]] and after.index.tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("r", "patches", "expected"),
    [(4, 64, [4] * 6), ([8, 0, 6], 64, [8, 0, 6]), (40, 64, [32, 16, 8]), (5, 1, [0, 0, 0]), (1, 3, [1, 1, 0])],
)
def test_effective_schedule(r, patches, expected):
    plan = [r] * len(expected) if isinstance(r, int) else r
    assert effective_schedule(plan, patches, MERGERS["tome"]) == expected


def test_the_example_of_docs_merging_md_is_a_method():
    """What the page tells people to write, put through the contract."""
    example = next(block for block in PAGE.split("```python")[1:] if "def first(" in block).split("```")[0]
    written = {"__package__": "models.merging.methods"}
    exec(compile(example, "docs/merging.md", "exec"), written)
    first = written["FIRST"]
    settings(max_examples=30, deadline=None)(given(case=cases())(lambda case: holds_the_contract(first, case)))()
    answer = first.assign(torch.ones(1, 6, 2), 2, MergeContext(torch.ones(1, 6)))
    assert answer.index.tolist() == [[0, 0, 0, 1, 2, 3]]
