"""How many tokens each block removes: every way of saying it, what methods make of it, and what a wrong one is told."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build_model
from models.merging import MERGERS, effective_schedule
from models.merging.settings import MergeSettings
from models.settings import UserError, check
from models.settings.vit import ViTSettings

EVERY = pytest.mark.parametrize("method", MERGERS)


def schedule(depth=12, img_size=224, **merge):
    """What a ViT with patches of 16 pixels makes of its `merge:` section."""
    return check(ViTSettings, {"img_size": img_size, "depth": depth, "merge": merge}, "model").schedule()


def test_a_number_is_for_every_block_and_a_list_has_one_for_each():
    assert schedule(r=13) == [13] * 12
    assert schedule(depth=3, r=[5, 0, 7]) == [5, 0, 7]
    assert schedule() == [0] * 12


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 40), last=st.integers(0, 40), depth=st.integers(1, 24))
def test_linear_goes_from_first_to_last(first, last, depth):
    plan = check(MergeSettings, {"r": {"first": first, "last": last}}).plan(depth)
    assert len(plan) == depth and plan[0] == first and (depth == 1 or plan[-1] == last)
    steps = [after - before for before, after in pairwise(plan)]
    assert all(step >= 0 for step in steps) if last >= first else all(step <= 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 2, "even steps, to rounding"
    if depth > 1:
        assert abs(sum(plan) - depth * (first + last) / 2) <= 1


def test_linear_by_hand():
    assert schedule(depth=4, r={"first": 9, "last": 0}) == [9, 6, 3, 0]
    assert schedule(depth=3, r={"first": 0, "last": 8}) == [0, 4, 8]
    assert schedule(depth=1, r={"first": 3, "last": 8}) == [3]


def test_blocks_before_the_first_that_merges_remove_nothing():
    assert schedule(depth=5, r=7, first_block=3) == [0, 0, 7, 7, 7]
    assert schedule(depth=5, r={"first": 9, "last": 1}, first_block=3) == [0, 0, 9, 5, 1]
    assert schedule(depth=5, r={"train": [2, 4]}, first_block=5) == [0, 0, 0, 0, 3]
    assert schedule(depth=5, r=7, first_block=1) == schedule(depth=5, r=7)


def test_blocks_that_merge_can_be_listed():
    assert schedule(depth=5, r=7, blocks=[5, 2]) == [0, 7, 0, 0, 7]
    assert schedule(depth=5, r={"first": 9, "last": 1}, blocks=[1, 3, 4]) == [9, 0, 5, 1, 0]
    assert schedule(depth=5, r={"train": [2, 4]}, blocks=[3]) == [0, 0, 3, 0, 0]
    assert schedule(depth=5, r=7, blocks=[3, 4, 5]) == schedule(depth=5, r=7, first_block=3)


@pytest.mark.parametrize("key", [{"first_block": 3}, {"blocks": [3, 4]}])
def test_a_list_in_the_place_of_r_says_which_blocks_merge(key):
    settings = check(MergeSettings, {"r": 7, **key})
    assert settings.with_r(4).plan(4) == [0, 0, 4, 4] and settings.with_r([1, 2, 3]).plan(3) == [1, 2, 3]


def test_keep_rates_are_those_of_the_paper():
    """EViT, and Haurum et al., 2023: 0.7 at blocks 4, 7 and 10 of 196 patches leaves 138, 97 and 68, rounded up."""
    removed = schedule(method="topk", keep={"rate": 0.7})
    left = [196 - sum(removed[:block]) for block in range(1, 13)]
    assert left == [196] * 3 + [138] * 3 + [97] * 3 + [68] * 3
    assert schedule(depth=2, img_size=64, method="random", keep={"rate": 0.5, "blocks": [2]}) == [0, 8]
    assert schedule(depth=2, img_size=64, keep={"rate": 1, "blocks": [1, 2]}) == [0, 0]


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.01, 1), patches=st.integers(1, 400), decimals=st.integers(1, 3))
def test_a_keep_rate_keeps_its_share_rounded_up(rate, patches, decimals):
    rate = max(round(rate, decimals), 10**-decimals)
    (removed,) = effective_schedule([rate], patches, MERGERS["random"])
    kept, thousandths = patches - removed, round(rate * 1000)
    assert kept == max(-(-thousandths * patches // 1000), 1)  # exact: ceil(0.7 * 10) is 7, whatever 0.7 is in binary


def test_the_middle_stands_for_a_range():
    assert schedule(r={"train": [0, 16]}) == [8] * 12
    assert schedule(r={"train": [3, 6]}) == [4] * 12
    assert schedule(r={"train": [5, 5]}) == [5] * 12


@EVERY
@settings(max_examples=40, deadline=None)
@given(asked=st.lists(st.integers(0, 70), min_size=1, max_size=8), side=st.integers(1, 8))
def test_no_method_is_asked_for_more_than_it_can(method, asked, side):
    merger, left, grid = MERGERS[method], side * side, (side, side)
    removed = effective_schedule(asked, left, merger, grid)
    assert effective_schedule(removed, side * side, merger, grid) == removed, "what is done can be asked for"
    for wanted, n in zip(asked, removed, strict=True):
        if merger.shrink is None:
            assert n == min(wanted, merger.at_most(left))
        left -= n
        assert n >= 0 and left >= 1
    assert sum(removed) <= sum(asked)


def test_what_a_grid_cannot_give_yet_it_owes():
    """8 x 8 patches pool to 16: 48 go at once, as soon as 48 have been asked for; then 12, then 3."""
    asked = [8] * 12
    assert effective_schedule(asked, 64, MERGERS["pool"], (8, 8)) == [0, 0, 0, 0, 0, 48, 0, 12, 3, 0, 0, 0]
    assert effective_schedule([8] * 6 + [0] * 3 + [8] * 3, 64, MERGERS["pool"], (8, 8))[6:] == [0, 0, 0, 0, 12, 3]
    assert effective_schedule([47, 0, 1], 64, MERGERS["pool"], (8, 8)) == [0, 0, 48]
    with pytest.raises(ValueError, match="merges neighbours on a grid"):
        effective_schedule(asked, 64, MERGERS["pool"])


@pytest.mark.parametrize("plan", [[8] * 12, [0] * 5 + [60] + [0] * 6])
def test_a_grid_is_never_ahead_of_what_was_asked(plan):
    grid = (8, 8)
    removed = effective_schedule(plan, 64, MERGERS["grid"], grid)
    for block in range(len(plan)):
        assert sum(removed[: block + 1]) <= sum(plan[: block + 1])
    assert sum(removed) >= 40, "and not far behind"


FORMS = "must be a whole number, a list with one for each block, {first: n, last: n} or {train: [least, most]}"


@pytest.mark.parametrize(
    ("merge", "line"),
    [
        ({"r": "x"}, f"model.merge.r = 'x': {FORMS}"),
        ({"r": True}, f"model.merge.r = True: {FORMS}"),
        ({"r": 1.5}, f"model.merge.r = 1.5: {FORMS}"),
        ({"r": None}, f"model.merge.r = None: {FORMS}"),
        ({"r": {}}, f"model.merge.r = {{}}: {FORMS}"),
        ({"r": {"trian": [0, 1]}}, f"model.merge.r = {{'trian': [0, 1]}}: {FORMS}"),
        ({"r": {"first": 1, "train": [0, 1]}}, f"model.merge.r = {{'first': 1, 'train': [0, 1]}}: {FORMS}"),
        ({"r": -3}, "model.merge.r = -3: must not be negative"),
        ({"r": [1, -1, 0]}, "model.merge.r = [1, -1, 0]: must not be negative"),
        ({"r": [1, True, 0]}, "model.merge.r.1 = True: should be a valid integer"),
        ({"r": [1, 2]}, "model.merge.r has 2 entries; the model has 3 blocks"),
        ({"r": {"train": [3, 1]}}, "model.merge.r.train = [3, 1]: must be the least and the most r, neither negative"),
        (
            {"r": {"train": [-1, 1]}},
            "model.merge.r.train = [-1, 1]: must be the least and the most r, neither negative",
        ),
        ({"r": {"train": [3]}}, "model.merge.r.train = [3]: must be two numbers, the least and the most r"),
        ({"r": {"train": ["a", 1]}}, "model.merge.r.train.0 = 'a': should be a valid integer"),
        ({"r": {"train": 3}}, "model.merge.r.train = 3: should be a valid list"),
        ({"r": {"first": 3}}, "model.merge.r.last: missing; it has no default"),
        ({"r": {"last": 3}}, "model.merge.r.first: missing; it has no default"),
        ({"r": {"first": -3, "last": 0}}, "model.merge.r.first = -3: must be at least 0"),
        ({"r": {"first": 3, "last": 0, "lost": 1}}, "model.merge.r.lost: unknown key; did you mean last?"),
        ({"keep": {"rate": 0}}, "model.merge.keep.rate = 0: must be greater than 0 and at most 1"),
        ({"keep": {"rate": 1.5}}, "model.merge.keep.rate = 1.5: must be greater than 0 and at most 1"),
        ({"keep": {"rate": 0.5, "blocks": [4]}}, "model.merge.keep.blocks = [4]: no block 4; use 1 to 3"),
        ({"keep": {"rate": 0.5, "blocks": [0]}}, "model.merge.keep.blocks = [0]: no block 0; use 1 to 3"),
        (
            {"keep": {"rate": 0.5, "blocks": [1, 2, 1]}},
            "model.merge.keep.blocks = [1, 2, 1]: block 1 is listed twice; list each block once",
        ),
        ({"keep": 0.7}, "model.merge.keep = 0.7: must be a section, as in keep: {key: value}"),
        (
            {"keep": {"rate": 0.5, "blocks": [1]}, "r": 3},
            "model.merge.keep = {'rate': 0.5, 'blocks': [1]}: cannot be combined with merge.r = 3; give one of them",
        ),
        ({"target_gmacs": 0}, "model.merge.target_gmacs = 0: must be greater than 0"),
        (
            {"target_ratio": 0.5},
            "model.merge.target_ratio = 0.5: must be at least 1: MACs without merging divided by MACs with it",
        ),
        (
            {"target_gmacs": 1, "target_ratio": 2},
            "model.merge.target_ratio = 2.0: cannot be combined with merge.target_gmacs = 1.0; give one of them",
        ),
        ({"first_block": 4, "r": 2}, "model.merge.first_block = 4: the model has 3 blocks; use 1 to 3"),
        ({"first_block": 0, "r": 2}, "model.merge.first_block = 0: must be at least 1 and at most 1000"),
        ({"first_block": 2, "r": [0, 1, 1]}, "model.merge.first_block = 2: merge.r says which blocks merge; omit one"),
        (
            {"first_block": 2, "keep": {"rate": 0.5, "blocks": [3]}},
            "model.merge.first_block = 2: merge.keep.blocks says which blocks merge; omit one",
        ),
        ({"blocks": [4], "r": 2}, "model.merge.blocks = [4]: no block 4; use 1 to 3"),
        ({"blocks": [0, 1], "r": 2}, "model.merge.blocks = [0, 1]: no block 0; use 1 to 3"),
        ({"blocks": [2, 2], "r": 2}, "model.merge.blocks = [2, 2]: block 2 is listed twice; list each block once"),
        ({"blocks": [2], "r": [0, 1, 1]}, "model.merge.blocks = [2]: merge.r says which blocks merge; omit one"),
        (
            {"blocks": [2], "keep": {"rate": 0.5, "blocks": [3]}},
            "model.merge.blocks = [2]: merge.keep.blocks says which blocks merge; omit one",
        ),
        (
            {"blocks": [2], "first_block": 2, "r": 1},
            "model.merge.first_block = 2: merge.blocks says which blocks merge; omit one",
        ),
        ({"target_gmacs": 1}, "model.merge.target_gmacs = 1.0: out of reach; with tome an image costs "),
        ({"target_ratio": 20}, "model.merge.target_ratio = 20.0 (1.025e-05 GMACs): out of reach; "),
    ],
)
def test_a_wrong_schedule_is_named_with_value_and_fix(merge, line):
    with pytest.raises(UserError) as error:
        build_model("vit", img_size=32, embed_dim=24, num_heads=2, depth=3, merge=merge)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_keep_rate_on_a_grid_counts_what_is_owed_already():
    """Never fewer patches than the rates ask for: what a block could not remove is not asked for twice."""
    plan = [0, 0, 0, 0.7, 0, 0, 0.7, 0, 0, 0.7, 0, 0]
    exact = 196 - sum(effective_schedule(plan, 196, MERGERS["topk"]))
    assert exact == 68
    for name in ("pool", "grid"):
        assert 196 - sum(effective_schedule(plan, 196, MERGERS[name], (14, 14))) >= exact
    assert effective_schedule([0.5, 0.5], 64, MERGERS["pool"], (8, 8)) == [0, 48]


@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_a_schedule_that_is_set_is_clamped_to_what_the_method_can_do(name):
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 10}
    for method, asked, wanted in (
        ("tome", [40, 0, 0], [32, 0, 0]),
        ("pool", [8, 8, 8], [0, 0, 0]),
        ("random", [70, 1, 1], [63, 0, 0]),
    ):
        model = build_model(name, **small, merge={"method": method})
        model.schedule = asked
        assert model.schedule == wanted and model.tokens_per_block()[-1] == 65 - sum(wanted)
    with pytest.raises(ValueError, match="2 entries; the model has 3 blocks"):
        model.schedule = [1, 2]
