"""Budgets of our own models and of other libraries: the solver against the counts and against every schedule."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise, product

import pytest
import timm
import torch
from torch import nn

from engine.cost.macs import measure
from models import MODELS, budget, build, build_model
from models.budget import solve, target_macs, with_r
from models.formulas import formula_macs
from models.merging import MERGERS, unwrap, wrap
from models.merging.budget import CountError
from models.merging.wrapping import blocks_of, schedule_of
from models.merging.wrapping.cost import count
from models.settings import Settings, UserError, check
from tests.marks import mostly_slow
from tests.models.merging import wrapped_models
from tests.models.test_zoo import settings as zoo_settings

MERGING = [method for method in MERGERS if method != "none"]
EXACT = [method for method in MERGING if MERGERS[method].shrink is None]
TINY_VIT = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
TI = {"embed_dim": 192, "num_heads": 3}
L512 = {"img_size": 512, "embed_dim": 1024, "depth": 24, "num_heads": 16}


def vit(merge: dict, **options) -> Settings:
    return check(MODELS["vit"][0], {"name": "vit", "merge": merge, **options}, "model")


def macs(settings: Settings) -> int:
    return sum(formula_macs(settings).values())


def every_cost(settings: Settings) -> set[int]:
    """What every list of removals costs, one by one."""
    patches = settings.grid[0] ** 2
    return {macs(with_r(settings, list(r))) for r in product(range(patches), repeat=settings.depth)}


@pytest.mark.parametrize(("shape", "method"), [*((TI, method) for method in EXACT), (L512, "tome"), (L512, "mctf")])
def test_a_ratio_is_met_within_half_a_percent(shape, method):
    unmerged = macs(vit({"method": "none"}, **shape))
    for ratio in (1.0, 1.03, 1.7, 4.0):
        solved = solve(vit({"method": method, "target_ratio": ratio}, **shape))
        assert macs(solved) == pytest.approx(unmerged / ratio, rel=0.005)
        assert solved.merge.solved and solved.merge.r == solved.schedule(), "what it asks for is what is done"
    assert max(solved.merge.r) - min(solved.merge.r) <= max(4, 0.1 * max(solved.merge.r)) or 0 in solved.merge.r


@pytest.mark.parametrize(("name", "gmacs"), [("vit", 0.08), ("hybrid", 0.11)])
def test_a_budget_is_what_is_counted_in_the_end(name, gmacs):
    """By tracing the built model, matching and CNN stage included."""
    options = {"img_size": 96, "embed_dim": 192, "num_heads": 3, "depth": 6, "num_classes": 10}
    settings = check(MODELS[name][0], {"name": name, **options, "merge": {"target_gmacs": gmacs}}, "model")
    solved = solve(settings)
    cost = measure(build(solved), settings=solved)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.005) and cost.by_kind["product"] > 0
    assert settings.merge.target_gmacs == gmacs and solved.merge.target_gmacs is None


def test_removals_are_spread_evenly():
    solved = solve(vit({"target_gmacs": 10.37}))
    assert all(12 <= r <= 14 for r in solved.merge.r)  # r = 13 is 10.37 GMACs
    assert macs(solved) == pytest.approx(10.37e9, rel=0.002)


@pytest.mark.parametrize("method", ["tome", "facility_location", "grid"])
def test_a_budget_is_met_by_later_blocks_alone(method):
    target = macs(vit({"method": "none"}, **TI)) / 1.3
    solved = solve(vit({"method": method, "target_ratio": 1.3, "first_block": 5}, **TI))
    assert macs(solved) == pytest.approx(target, rel=0.02 if method == "grid" else 0.005)
    assert solved.merge.r[:4] == [0] * 4 and sum(solved.merge.r[4:]) > sum(
        solve(vit({"method": method, "target_ratio": 1.3}, **TI)).merge.r
    )
    assert solved.merge.first_block == 1, "the list says it all"


@pytest.mark.parametrize("method", ["tome", "facility_location", "grid"])
def test_a_budget_is_met_by_the_listed_blocks_alone(method):
    target = macs(vit({"method": "none"}, **TI)) / 1.3
    solved = solve(vit({"method": method, "target_ratio": 1.3, "blocks": [10, 4, 7]}, **TI))
    assert macs(solved) == pytest.approx(target, rel=0.03 if method == "grid" else 0.005)
    assert {i for i, r in enumerate(solved.merge.r, 1) if r} <= {4, 7, 10} and solved.merge.blocks is None
    spread = [solved.merge.r[i] for i in (3, 6, 9)]
    assert method == "grid" or max(spread) - min(spread) < 10, "spread evenly"


def test_a_budget_out_of_the_later_blocks_reach_names_their_range():
    least = macs(with_r(vit({"method": "tome"}, **TI), [0] * 9 + [196] * 3)) / 1e9
    with pytest.raises(UserError, match=f"out of reach; with tome an image costs {least:.4g} to "):
        solve(vit({"method": "tome", "target_gmacs": 0.9 * least, "first_block": 10}, **TI))


def test_a_small_model_is_searched_for_later_blocks_alone():
    settings = vit({"method": "tome", "target_ratio": 1.1, "first_block": 2}, depth=3, **TINY_VIT)
    least = min(abs(cost - macs(with_r(settings, 0)) / 1.1) for cost in every_cost(settings))
    try:
        solved = solve(settings)
        assert solved.merge.r[0] == 0 and macs(solved) >= least
    except UserError as error:
        assert "too small" in str(error)


def test_what_has_no_target_stays_as_it_is():
    for merge in ({"r": 3}, {"keep": {"rate": 0.7}}, {"r": {"train": [0, 4]}}):
        settings = vit(merge)
        assert solve(settings) is settings


@pytest.mark.parametrize("method", ["pool", "grid"])
@pytest.mark.parametrize("ratio", [1.05, 1.3, 1.9])
def test_on_a_grid_the_nearest_is_taken_and_said(method, ratio, caplog):
    settings = vit({"method": method, "target_ratio": ratio}, **{**TINY_VIT, "img_size": 12}, depth=3)
    with caplog.at_level(logging.INFO, "hybridmerge"):
        solved = solve(settings)
    target = macs(with_r(settings, 0)) / ratio
    possible = every_cost(settings)
    found = abs(macs(solved) - target)
    assert found == min(abs(cost - target) for cost in possible) or found <= 0.005 * target
    (record,) = caplog.records
    missed = found > 0.005 * target
    assert record.levelname == ("WARNING" if missed else "INFO")
    assert str(solved.merge.r) in record.message and ("nearest found" in record.message) == missed


def test_a_large_grid_is_searched_too():
    for method, near in (("pool", 0.02), ("grid", 0.005)):
        unmerged = macs(vit({"method": "none"}, **L512))
        solved = solve(vit({"method": method, "target_ratio": 1.5}, **L512))
        assert macs(solved) == pytest.approx(unmerged / 1.5, rel=near)


@pytest.mark.parametrize("method", EXACT)
def test_a_coarse_model_is_told_its_nearest_budgets_and_those_are_met(method):
    small = {**TINY_VIT, "img_size": 12, "depth": 2}
    settings = vit({"method": method, "r": 0}, **small)
    possible = sorted(cost for cost in every_cost(settings) if cost <= macs(settings))
    gaps = [(below, above) for below, above in pairwise(possible) if above > 1.03 * below]
    for below, above in gaps:
        with pytest.raises(UserError) as error:
            solve(vit({"method": method, "target_gmacs": (below + above) / 2e9}, **small))
        named = [f"{cost / 1e9:.4g}" for cost in (below, above)]
        assert "too small to meet it within 0.5 %" in str(error.value)
        assert str(error.value).endswith(f"the nearest budgets are {' and '.join(named)} GMACs")
        for gmacs in named:
            solved = solve(vit({"method": method, "target_gmacs": float(gmacs)}, **small))
            assert macs(solved) / 1e9 == pytest.approx(float(gmacs), rel=0.005)
    assert gaps


@pytest.mark.parametrize("method", MERGING)
def test_out_of_reach_names_the_range_and_its_ends_are_met(method):
    for key, value in (("target_gmacs", 20.0), ("target_gmacs", 0.1), ("target_ratio", 99.0)):
        with pytest.raises(UserError) as error:
            solve(vit({"method": method, key: value}))
        line = str(error.value)
        assert line.startswith(f"model.merge.{key} = {value}") and "\n" not in line
        assert f"out of reach; with {method} an image costs " in line and "to 17.56 GMACs" in line
    least = float(line.split("image costs ")[1].split(" to ")[0])
    for gmacs in (least, 17.56):
        assert macs(solve(vit({"method": method, "target_gmacs": gmacs}))) / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert macs(solve(vit({"method": method, "target_gmacs": least}))) == macs(vit({"method": method, "r": 196}))


def test_no_merging_meets_the_cost_without_merging_alone():
    """So that the baseline of a table takes the same key as its other rows."""
    unmerged = macs(vit({"method": "none"})) / 1e9
    for merge in ({"target_ratio": 1}, {"target_gmacs": 1.004 * unmerged}, {"target_gmacs": 0.996 * unmerged}):
        solved = solve(vit({"method": "none", **merge}))
        assert solved.schedule() == [0] * 12 and solved.merge.solved and macs(solved) / 1e9 == unmerged
    for merge in ({"target_ratio": 1.01}, {"target_gmacs": 1.01 * unmerged}):
        with pytest.raises(UserError, match="none removes nothing here; choose another model.merge.method"):
            solve(vit({"method": "none", **merge}))


def test_what_was_asked_for_is_a_number_of_macs():
    unmerged = macs(vit({"r": 0}))
    assert target_macs(vit({"target_ratio": 2.0, "method": "mctf"})) == unmerged / 2
    assert target_macs(vit({"target_gmacs": 9.5})) == 9.5e9
    assert target_macs(vit({"r": 3})) is None and target_macs(solve(vit({"target_gmacs": 9.5}))) is None


def test_what_cannot_be_solved_is_said(monkeypatch):
    with pytest.raises(UserError, match="none removes nothing here; choose another model.merge.method"):
        solve(vit({"method": "none", "target_gmacs": 9.0}))
    monkeypatch.setattr(budget, "FORMULAS", {})
    with pytest.raises(UserError, match=r"model.merge.target_gmacs = 9.0: vit has no formula .* give model.merge.r"):
        solve(vit({"target_gmacs": 9.0}))


def test_a_method_that_costs_more_than_a_few_removals_save_is_moved_to_the_front(monkeypatch):
    """All pairs compared twelve times over: one removal in each block would cost more than no merging."""
    costly = replace(MERGERS["tome"], macs=lambda counts, kth: 12 * counts.patches**2 * counts.metric_dim)
    monkeypatch.setitem(MERGERS, "tome", costly)
    unmerged = macs(vit({"method": "none"}))
    for share in (0.97, 0.99):
        solved = solve(vit({"target_gmacs": share * unmerged / 1e9}))
        assert macs(solved) == pytest.approx(share * unmerged, rel=0.005)


# Other libraries' models, by tracing

SMALL = {"img_size": 96, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 5}


def traced(model: nn.Module, size: int = 96) -> int:
    """MACs by fvcore, which shares no code with the count that budgets are solved by."""
    model.img_size, model.in_chans = size, 3
    return measure(model).macs


@pytest.mark.parametrize("method", mostly_slow(MERGING, ["tome", "facility_location", "pool", "dynamicvit"]))
def test_wrap_meets_a_ratio(method):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    unmerged = traced(model)
    assert count(model, (3, 96, 96)) == unmerged
    wrap(model, method=method, target_ratio=1.6)
    near = 0.2 if method == "pool" else 0.005  # the second of two poolings, in the first or in the last blocks
    assert traced(model) == pytest.approx(unmerged / 1.6, rel=near) and count(model, (3, 96, 96)) == traced(model)
    assert schedule_of(model) == blocks_of(model).plan and sum(schedule_of(model)) > 0


@pytest.mark.parametrize(
    "name", mostly_slow(wrapped_models.MODELS, ["deit", "registers", "beit_both", "eva02", "dinov3", "torchvision"])
)
def test_every_family_meets_a_number_of_macs(name):
    """Learned heads and attention scores included; whatever merging was in the model before is replaced."""
    model = wrapped_models.built(name)
    unmerged = traced(model, 32)
    model = wrap(wrap(model, r=3), method="dtem", target_gmacs=0.7 * unmerged / 1e9)
    assert traced(model, 32) == pytest.approx(0.7 * unmerged, rel=0.005)
    assert model(wrapped_models.images()).shape == (2, 5) and not any(
        module._forward_hooks for module in model.modules()
    )


def test_a_target_that_cannot_be_met_leaves_the_model_as_it_was():
    model = wrapped_models.built("deit", img_size=96)
    plain = wrapped_models.container(model)
    unmerged = count(model, (3, 96, 96))
    for options, line in (
        ({"target_ratio": 50.0}, r"merge.target_ratio = 50.0 .* out of reach; with tome an image costs .* \(ratio 2"),
        ({"method": "none", "target_ratio": 1.5}, "none removes nothing here; choose another merge.method"),
    ):
        with pytest.raises(UserError, match=line):
            wrap(model, **options)
        assert wrapped_models.container(model) is plain
    wrap(model, method="none", target_gmacs=unmerged / 1e9)
    assert schedule_of(model) == [0, 0, 0] and type(wrapped_models.container(unwrap(model))) is type(plain)


def test_a_model_without_an_image_size_has_no_budget(monkeypatch):
    model = wrapped_models.built("deit")
    monkeypatch.setattr(model.patch_embed, "grid_size", None)
    with pytest.raises(UserError, match="merge.target_ratio = 1.5: this VisionTransformer was built for no image size"):
        wrap(model, target_ratio=1.5)


def test_an_operator_that_multiplies_is_counted_or_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.nn.functional.conv_tbc(x.flatten(2), torch.zeros(1, 4, 2), torch.zeros(2))

    with pytest.raises(CountError, match="aten::conv_tbc: add its MACs to MACS in models.merging.wrapping.cost"):
        count(Odd(), (3, 2, 2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:vit_tiny_patch16_224", {"depth": 4, "embed_dim": 96}),
        pytest.param("timm:beit_base_patch16_224", {"depth": 4, "embed_dim": 96}, marks=pytest.mark.slow),
        pytest.param("torchvision:vit_b_16", {}, marks=pytest.mark.slow),  # there is none that is small
    ],
)
def test_settings_of_another_librarys_model_are_solved(name, options):
    common = {"img_size": 64, "options": options}
    unsolved = zoo_settings(name, **common, merge={"method": "tome", "target_ratio": 1.2})
    solved = solve(unsolved)
    model = build(solved)
    assert solved.merge.solved and solved.merge.r == schedule_of(model)
    assert target_macs(unsolved) == measure(build(with_r(unsolved, 0))).macs / 1.2
    assert measure(model, settings=solved).macs == pytest.approx(target_macs(unsolved), rel=0.005)
    with pytest.raises(UserError, match=rf"model.merge, {name}: merge.target_ratio = 99.0 .* out of reach"):
        solve(zoo_settings(name, **common, merge={"target_ratio": 99.0}))


def test_build_model_takes_a_budget():
    options = {"img_size": 64, "embed_dim": 96, "num_heads": 3, "depth": 4, "num_classes": 5}
    unmerged = measure(build_model("vit", **options)).macs
    assert measure(build_model("vit", **options, merge={"target_ratio": 1.3})).macs == pytest.approx(
        unmerged / 1.3, 0.005
    )
