"""Budgets in milliseconds: the choice of the schedule, on a clock that the test winds, and one real model."""

from functools import partial

import pytest
import torch
from torch import nn

from models.budget import solve, target_macs
from models.builders import build
from models.interface import as_merging_model
from models.merging import latency, wrap
from models.merging.latency import solve_time
from models.merging.settings import MergeSettings
from models.merging.wrapping import schedule_of
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from tests.models.merging.wrapped_models import MODELS

DEPTH, GRID = 12, (14, 14)


class Clock:
    """Stands in for `timed`: a pass takes as long as its tokens and its merges say."""

    def __init__(self, monkeypatch, token, merge):
        self.token, self.merge, self.timed, self.calls = token, merge, [], 0
        monkeypatch.setattr(latency, "timed", self)

    def takes(self, schedule):
        left, total = 196, 0.0
        for removed in schedule:
            total += self.token * left + self.merge * (removed > 0)
            left -= removed
        return total

    def __call__(self, calls, repeats, device, **others):
        schedules = [call.args[0] for call in calls.values()]
        self.timed += schedules
        self.calls += repeats * len(schedules)
        return {name: [self.takes(schedule)] * repeats for name, schedule in zip(calls, schedules)}


def solved(**options):
    merge = check(MergeSettings, options, where="merge")
    return solve_time(merge, nn.Linear(1, 1), lambda schedule: None, (3, 224, 224), DEPTH, GRID)


def merging(schedule):
    return [i for i, removed in enumerate(schedule) if removed]


@pytest.mark.parametrize("method", ["tome", "facility_location", "grid"])
@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_the_time_is_kept_and_not_undercut_by_much(monkeypatch, method, share):
    clock = Clock(monkeypatch, token=0.01, merge=0.1)
    target = share * clock.takes((0,) * DEPTH)
    schedule = solved(method=method, target_ms=target)
    assert clock.takes(schedule) <= 1.02 * target
    assert method == "grid" or clock.takes(schedule) > 0.9 * target


def test_the_dearer_a_merge_the_fewer_blocks_merge(monkeypatch):
    numbers = []
    for merge in (0.0, 0.3, 1.0):
        clock = Clock(monkeypatch, token=0.01, merge=merge)
        numbers.append(len(merging(solved(target_ms=0.8 * clock.takes((0,) * DEPTH)))))
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > numbers[-1]


def test_of_all_that_are_fast_enough_the_most_tokens_are_processed(monkeypatch):
    clock = Clock(monkeypatch, token=0.01, merge=0.2)
    target = 0.75 * clock.takes((0,) * DEPTH)
    best = solved(target_ms=target)
    kept = Clock(monkeypatch, token=1, merge=0)
    fast = [schedule for schedule in clock.timed if clock.takes(schedule) <= target]
    assert len(fast) > 5 and kept.takes(best) >= max(map(kept.takes, fast)) - 12 * 196 * 0.02


def test_listed_blocks_and_the_first_block_are_kept(monkeypatch):
    clock = Clock(monkeypatch, token=0.01, merge=0.0)
    target = 0.8 * clock.takes((0,) * DEPTH)
    assert merging(solved(target_ms=target, blocks=[3, 9])) == [2, 8]
    assert min(merging(solved(target_ms=target, first_block=4))) >= 3
    assert all(not any(schedule[:2]) for schedule in clock.timed if merging(schedule) != [2, 8])


def test_slow_passes_are_timed_in_fewer_rounds(monkeypatch):
    calls = []
    for token in (0.01, 0.2, 10.0):  # a pass of the unmerged model takes 24 ms, 0.5 s and 24 s
        clock = Clock(monkeypatch, token=token, merge=0.0)
        solved(target_ms=0.8 * clock.takes((0,) * DEPTH))
        calls.append(clock.calls)
    assert calls[0] > 2 * calls[1] > 2 * calls[2]


def test_out_of_reach(monkeypatch):
    clock = Clock(monkeypatch, token=0.01, merge=0.0)
    unmerged = clock.takes((0,) * DEPTH)
    with pytest.raises(UserError, match=r"^merge.target_ms = 1: out of reach; with tome a forward pass of 4 takes "):
        solved(target_ms=1, target_batch=4)
    assert solved(target_ms=unmerged) == [0] * DEPTH
    Clock(monkeypatch, token=0.01, merge=100.0)  # merging makes it slower, whatever is merged
    with pytest.raises(UserError, match=f"takes {unmerged:.4g} to {unmerged:.4g} ms here"):
        solved(target_ms=0.9 * unmerged)


def test_a_wrapped_model(monkeypatch):
    model = MODELS["deit"]().train()
    shapes = []
    model.patch_embed.register_forward_hook(lambda module, inputs, out: shapes.append(inputs[0].shape))
    model.patch_embed.register_forward_hook(lambda *_: modes.append(model.training))
    modes = []
    seen = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(latency, "timed", partial(_by_tokens, patches=16))
        wrap(model, method="tome", target_ms=30, target_batch=2)
    assert sum(schedule_of(model)) > 0 and model.training
    assert set(shapes) == {(2, 3, 32, 32)} and modes and not any(modes)
    assert torch.equal(seen, torch.get_rng_state()), "the user's random numbers are as they were"

    with pytest.raises(UserError, match="merge.target_ms = 1e-06: out of reach"):
        wrap(model, method="tome", target_ms=1e-6)
    assert sum(schedule_of(model)) > 0, "the model is as it was"


def test_a_part_that_is_frozen_stays_in_its_mode(monkeypatch):
    monkeypatch.setattr(latency, "timed", partial(_by_tokens, patches=16))
    model = MODELS["deit"]().train()
    model.blocks[1].eval()
    before = {name: module.training for name, module in model.blocks[1].named_modules()}
    wrap(model, method="tome", target_ms=35)
    assert {name: module.training for name, module in model.blocks[1].named_modules()} == before
    assert model.training and model.blocks[0].training and not model.blocks[1].training


def _by_tokens(calls, repeats, device, *, patches, **others):
    times = {}
    for name, call in calls.items():
        call()
        left, times[name] = patches, [0.0] * repeats
        for removed in call.args[0]:
            times[name] = [before + left for before in times[name]]
            left -= removed
    return times


def test_a_model_of_ours(monkeypatch):
    monkeypatch.setattr(latency, "timed", partial(_by_tokens, patches=16))
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    settings = check(ViTSettings, {"name": "vit", **options, "merge": {"target_ms": 30}}, where="model")
    met = solve(settings)
    assert met.merge.solved and sum(met.merge.r) > 0 and target_macs(settings) is None
    assert as_merging_model(build(settings)).schedule == met.schedule()


def test_times_are_measured(monkeypatch):
    """A real clock: the times in the error are those of real passes."""
    monkeypatch.setattr(latency, "LEAST_MS", 0.0)
    model = MODELS["deit"]().eval()
    assert schedule_of(wrap(model, method="tome", target_ms=1e6)) == [0, 0, 0]
    with pytest.raises(UserError, match=r"a forward pass of 1 takes [\d.e-]+ to [\d.e-]+ ms here"):
        wrap(model, method="tome", target_ms=1e-6)
