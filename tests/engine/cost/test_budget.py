"""Budgets in runs: what was asked for and what was done; and r drawn anew for every training step."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from engine.cost.budget import drawn_schedule, range_of
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import built
from engine.runs.restore import load_run
from engine.settings.layers import load_settings
from engine.train.experiment import run_experiment
from engine.train.loop.objective import Objective
from engine.train.loop.trainer import Trainer
from models import MODELS
from models.budget import solve, with_r
from models.formulas import formula_macs
from models.merging.layer import MergeLayer
from models.settings import Settings, UserError, check
from tests.engine.train.loop.test_trainer import Crash, assert_same_run


def vit(merge: dict, **options) -> Settings:
    return check(MODELS["vit"][0], {"name": "vit", "merge": merge, **options}, "model")


def macs(settings: Settings) -> int:
    return sum(formula_macs(settings).values())


def test_a_run_keeps_what_was_asked_and_says_what_was_done(tiny, folder):
    settings = tiny(model={"merge": {"method": "tome", "target_ratio": 1.2}}, train={"epochs": 1})
    results = run_experiment(settings, folder)
    kept = load_settings(str(folder / "settings.yaml")).model.merge
    assert kept.target_ratio == 1.2 and kept.r == 0
    unmerged = macs(with_r(settings.model, 0)) / 1e9
    assert results.gmacs == pytest.approx(unmerged / 1.2, rel=0.005)
    assert results.target_gmacs == unmerged / 1.2
    text = (folder / "log.txt").read_text()
    assert results.removed == solve(settings.model).merge.r and sum(results.removed) > 0
    assert f"tome removes {results.removed}" in text and text.count("model.merge.target_ratio = 1.2") == 1
    run = load_run(folder)
    assert run.as_trained and run.model.schedule == results.removed
    with pytest.raises(UserError, match=r"model\.merge\.target_ratio = 1\.3"):
        run_experiment(tiny(model={"merge": {"method": "tome", "target_ratio": 1.3}}), folder, resume=True)


# Any budget


def test_draws_are_uniform_and_depend_on_seed_and_step_alone():
    settings = vit({"r": {"train": [2, 5]}})
    drawn = [drawn_schedule(settings, 0, step)[0] for step in range(4000)]
    assert drawn[:200] == [drawn_schedule(settings, 0, step)[0] for step in range(200)]
    counts = Counter(drawn)
    assert set(counts) == {2, 3, 4, 5} and all(900 < n < 1100 for n in counts.values())
    assert drawn[:50] != [drawn_schedule(settings, 1, step)[0] for step in range(50)]
    assert drawn_schedule(vit({"r": {"train": [190, 190]}}), 0, 0)[:3] == [98, 49, 24]  # what tome can take
    assert range_of(settings) == [2, 5] and range_of(vit({"r": 3})) is None


def any_budget(tiny, **sections):
    return tiny(model={"merge": {"method": "tome", "r": {"train": [0, 8]}}}, log={"images": 0}, **sections)


def test_each_step_has_its_own_budget_and_validation_the_middle(tiny, folder, monkeypatch):
    """All micro-batches of a step alike; the model has the middle's again whenever it is evaluated."""
    settings = any_budget(tiny, train={"epochs": 1})
    trained, evaluated = [], []
    forward = MergeLayer.forward

    def spied(self, x, tokens, r, attended):
        (trained if self.training else evaluated).append(r)
        return forward(self, x, tokens, r, attended)

    monkeypatch.setattr(MergeLayer, "forward", spied)
    results = run_experiment(settings, folder)
    steps = [drawn_schedule(settings.model, settings.seed, step) for step in range(10)]
    assert trained == [r for schedule in steps for _ in range(2) for r in schedule]
    assert len({tuple(schedule) for schedule in steps}) > 3
    assert len(evaluated) > 4 and set(evaluated) == {4} and results.removed == [4, 4]
    assert results.gmacs * 1e9 == macs(with_r(settings.model, 4)) and results.target_gmacs is None
    said = "each training step draws r from 0 to 8; validation and test stay there"
    assert said in (folder / "log.txt").read_text()


def test_interrupted_and_resumed_equals_straight(tiny, tmp_path, monkeypatch):
    settings = any_budget(tiny, train={"epochs": 2}, split={"part": 0.1}, checkpoint={"every_steps": 2})
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    run_experiment(settings, straight)
    step = Trainer.step

    def crashing(self, *args):
        if self.progress.step == 5:
            raise Crash
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Trainer, "step", crashing)
        run_experiment(settings, stopped)
    assert checkpoint.load(stopped / "last.pt")["progress"]["step"] == 4
    run_experiment(settings, stopped, resume=True)
    assert_same_run(straight, stopped)


def test_a_range_of_one_trains_as_the_number_does(tiny, tmp_path):
    """Drawing r disturbs no other draw."""
    weights = []
    for name, r in (("range", {"train": [3, 3]}), ("number", 3)):
        (tmp_path / name).mkdir()
        settings = tiny(
            model={"merge": {"method": "tome", "r": r}}, train={"epochs": 1}, split={"part": 0.1}, log={"images": 0}
        )
        run_experiment(settings, tmp_path / name)
        weights.append(checkpoint.load(tmp_path / name / "last.pt")["model"])
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())


def test_a_step_that_fails_leaves_the_middle(tiny, folder, monkeypatch):
    seen = []

    def failing(self, *args):
        seen.append(self.network)
        raise Crash

    monkeypatch.setattr(Objective, "forward", failing)
    with pytest.raises(Crash):
        run_experiment(any_budget(tiny), folder)
    assert seen[0].schedule == [4, 4]


def test_every_place_that_builds_solves_first(tiny, tmp_path):
    from tools import flops

    settings = tiny(model={"merge": {"method": "tome", "target_ratio": 1.2}})
    solved = solve(settings.model).merge.r
    assert built(settings).schedule == solved
    flops.main(["--cfg", "digits/hybrid", "merge.target_gmacs=0.018", "--json", str(tmp_path / "cost.json")])
    (row,) = json.loads((tmp_path / "cost.json").read_text())
    assert row["gmacs"] == pytest.approx(0.018, rel=0.005)
