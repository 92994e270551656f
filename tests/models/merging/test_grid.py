"""Merging that leaves a grid, against a literal loop; and the hybrid that needs no bridge after it."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.cost.macs import measure
from models import build_model
from models.bridge import DirectMap
from models.merging import MERGERS, MergeContext, Tokens, effective_schedule, initial_tokens, merge
from models.settings import UserError, check
from models.settings.hybrid import HybridSettings

GRID = MERGERS["grid"]
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10}


def step_by_the_book(line: list[list[int]], vectors: np.ndarray, sizes: np.ndarray, r: int) -> list[list[int]]:
    """One line of tokens, each a list of patches: r tokens at odd places join the more similar of their neighbours."""
    means = [np.average(vectors[token], axis=0, weights=sizes[token]) for token in line]
    unit = [mean / np.linalg.norm(mean) for mean in means]
    edges = []
    for i in range(1, len(line), 2):
        beside = [j for j in (i - 1, i + 1) if j < len(line)]
        best = max(beside, key=lambda j: unit[i] @ unit[j])
        edges.append((unit[i] @ unit[best], min(i, best)))
    joined = {left for _, left in sorted(edges, key=lambda edge: -edge[0])[:r]}  # `left` and the token after it
    merged = [line[0]]
    for i in range(1, len(line)):
        if i - 1 in joined:
            merged[-1] = merged[-1] + line[i]
        else:
            merged.append(line[i])
    return merged


def grid_by_the_book(vectors: np.ndarray, sizes: np.ndarray, grid: tuple, smaller: tuple) -> list[list[int]]:
    """Rows, then columns: which patches make up each output patch, in row order."""
    rows = [[[i * grid[1] + j] for j in range(grid[1])] for i in range(grid[0])]
    rows = [step_by_the_book(row, vectors, sizes, grid[1] - smaller[1]) for row in rows]
    columns = [[row[j] for row in rows] for j in range(smaller[1])]
    columns = [step_by_the_book(column, vectors, sizes, grid[0] - smaller[0]) for column in columns]
    return [sorted(columns[j][i]) for i in range(smaller[0]) for j in range(smaller[1])]


@st.composite
def cases(draw):
    """A metric and sizes on a grid, and how many patches at most may go."""
    grid = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.standard_normal((prod(grid), 5)), rng.integers(1, 5, prod(grid)), grid, draw(st.integers(0, prod(grid)))


def answer_of(vectors, sizes, grid, smaller):
    context = MergeContext(torch.tensor(sizes)[None].float(), grid=grid)
    return GRID.assign(torch.tensor(vectors)[None].float(), prod(grid) - prod(smaller), context)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_it_equals_a_literal_loop_and_keeps_the_order(case):
    vectors, sizes, grid, r = case
    smaller = GRID.shrink(grid, r)
    answer = answer_of(vectors, sizes, grid, smaller)
    assert answer.grid == smaller and answer.count == prod(smaller)
    index = answer.index[0].numpy()
    groups = [np.flatnonzero(index == i).tolist() for i in range(answer.count)]
    assert groups == grid_by_the_book(vectors, sizes, grid, smaller)

    row, column = index.reshape(grid) // smaller[1], index.reshape(grid) % smaller[1]
    steps = np.diff(column, axis=1)  # along a row the column rises by one or stays: its members are neighbours
    assert np.isin(steps, (0, 1)).all() and (column[:, 0] == 0).all() and (column[:, -1] == smaller[1] - 1).all()
    for j in range(smaller[1]):  # what a row put into a column goes to one place, which rises from row to row
        places = [set(row[i][column[i] == j]) for i in range(grid[0])]
        assert all(len(place) == 1 for place in places)
        assert np.isin(np.diff([place.pop() for place in places]), (0, 1)).all()


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), r=st.integers(0, 400))
def test_the_grid_shrinks_as_far_as_it_may(rows, columns, r):
    smaller = GRID.shrink((rows, columns), r)
    gone = rows * columns - prod(smaller)
    assert gone <= r
    assert rows <= 2 * smaller[0] and columns <= 2 * smaller[1]
    assert GRID.shrink((rows, columns), gone) == smaller  # asked for what it took, it takes the same
    # what it left it could not take: a column costs as many patches as there are rows
    assert smaller[1] == -(-columns // 2) or gone + smaller[0] > r
    assert smaller[0] == -(-rows // 2) or gone + smaller[1] > r


@pytest.mark.parametrize(
    ("grid", "r", "expected"),
    [
        ((8, 8), 7, (8, 8)),
        ((8, 8), 8, (8, 7)),
        ((8, 8), 15, (7, 7)),
        ((8, 8), 1000, (4, 4)),
        ((4, 10), 4, (4, 9)),
        ((10, 4), 4, (9, 4)),
        ((1, 9), 3, (1, 6)),
        ((1, 9), 9, (1, 5)),
        ((9, 1), 9, (5, 1)),
        ((2, 9), 12, (2, 5)),
        ((2, 9), 13, (1, 5)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_grids_by_hand(grid, r, expected):
    assert GRID.shrink(grid, r) == expected


def test_what_it_cannot_remove_it_owes():
    assert effective_schedule([13] * 4, 196, GRID, (14, 14)) == [0, 14, 13, 25]  # 52 in all


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("r", [8, 15, 48])
def test_it_merges_inside_constant_pieces(r, seed):
    """An image of four pieces, their edges at odd and even places: no output patch has patches of two."""
    piece = 2 * (torch.arange(8) >= 3)[:, None] + (torch.arange(8) >= 4)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((4, 16))[piece.flatten()] + 0.01 * rng.standard_normal((64, 16))
    answer = answer_of(vectors, np.ones(64), (8, 8), GRID.shrink((8, 8), r))
    assert answer.count < 64
    for i in range(answer.count):
        assert len(set(piece.flatten()[answer.index[0] == i].tolist())) == 1


def test_blocks_follow_each_other():
    """Each block sees the grid that the one before left, with its sizes; the whole is their composition."""
    grid, r = (7, 6), [12, 9, 8]
    x = torch.randn(2, 1 + prod(grid), 4, generator=torch.Generator().manual_seed(0))
    out, tokens, left = x, initial_tokens(x, grid), grid
    groups = [[[i] for i in range(prod(grid))] for _ in x]
    for removed in effective_schedule(r, prod(grid), GRID, grid):
        smaller = GRID.shrink(left, removed)
        for image, parts in enumerate(groups):
            sizes = np.array([len(part) for part in parts])
            merged = grid_by_the_book(out[image, 1:].double().numpy(), sizes, left, smaller)
            groups[image] = [[patch for token in group for patch in parts[token]] for group in merged]
        out, tokens = merge(out, tokens, out, removed, GRID, prefix=1)
        assert tokens.grid == smaller and tokens.size.shape[1] == 1 + prod(smaller) < 1 + prod(left)
        left = smaller
    for image, parts in enumerate(groups):
        for token, patches in enumerate(parts):
            assert (tokens.index[image, 1:][patches] == token + 1).all()
            torch.testing.assert_close(out[image, token + 1], x[image, 1:][patches].mean(0))


def test_ties_go_to_the_left_and_up():
    answer = answer_of(np.ones((9, 2)), np.ones(9), (3, 3), (2, 2))
    assert answer.index.tolist() == [[0, 0, 1, 0, 0, 1, 2, 2, 3]]


# The hybrid without a bridge


@torch.no_grad()
def test_the_direct_map_by_hand():
    """Cell by cell: the projected token + log size embedding + the mean of the stem's features over its patches."""
    torch.manual_seed(0)
    bridge = DirectMap(embed_dim=3, dim=5)
    x, features = torch.randn(1, 5, 3), torch.randn(1, 3, 2, 4)
    index = torch.tensor([[0, 1, 1, 2, 2, 3, 1, 4, 4]])  # the class token, then 2 x 4 patches on a grid of 2 x 2
    tokens = Tokens(index, torch.tensor([[1.0, 3.0, 2.0, 1.0, 2.0]]), grid=(2, 2))
    out = bridge(x, tokens, features, prefix=1)
    assert out.shape == (1, 5, 2, 2)
    for token in range(1, 5):
        members = features[0].flatten(1)[:, index[0, 1:] == token]
        cell = bridge.proj(x[0, token]) + tokens.size[0, token].log() * bridge.size_embed.weight[:, 0]
        cell = cell + bridge.skip.weight[:, :, 0, 0] @ members.mean(1)
        torch.testing.assert_close(out[0, :, (token - 1) // 2, (token - 1) % 2], cell)


@pytest.mark.parametrize(("method", "r"), [("grid", [20, 11]), ("grid", 0), ("pool", 48), ("none", 9)])
def test_without_a_bridge_it_learns_and_its_cost_is_the_formulas(method, r):
    options = {**SMALL, "depth": 2, "merge": {"method": method, "r": r}, "cnn": {"depth": 1}}
    hybrid = build_model("hybrid", **options, bridge=None)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(hybrid.conv_head.fc.weight)
    F.cross_entropy(hybrid(images), torch.tensor([1, 2])).backward()
    for name, parameter in hybrid.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    hybrid.schedule = [0, 0] if method == "none" else effective_schedule([30, 30], 64, MERGERS[method], (8, 8))
    assert hybrid(images).isfinite().all()  # another schedule, another grid

    costs = []
    for bridge in (None, {"stride": 1}):
        made = check(HybridSettings, {"name": "hybrid", **options, "bridge": bridge})
        cost = measure(build_model(**made.model_dump()), settings=made)
        assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
        costs.append(cost.by_kind["convolution"])
    assert (costs[0] < costs[1]) == (cost.tokens[-1] < 65)


@torch.no_grad()
def test_where_nothing_is_merged_the_bridge_makes_no_difference():
    """Its parameters have the bridge's names, so that a checkpoint serves both."""
    options = {**SMALL, "merge": {"method": "grid"}}
    bridged, direct = build_model("hybrid", **options).eval(), build_model("hybrid", **options, bridge=None).eval()
    torch.nn.init.normal_(bridged.conv_head.fc.weight)
    direct.load_state_dict(bridged.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(direct(images), bridged(images), atol=1e-5, rtol=1e-5)


def test_a_method_that_leaves_no_grid_needs_a_bridge():
    with pytest.raises(UserError) as error:
        build_model("hybrid", **SMALL, merge={"method": "tome"}, bridge=None)
    for word in ("model.bridge = null", "merge.method = tome", "grid", "pool"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert build_model("hybrid", **SMALL, merge={"method": "tome"}, bridge=None, cnn=None).conv_head is None
