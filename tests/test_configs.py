"""Every file under configs/ is a run, or the plan of a study, counts, and says how to run it."""

import pytest
import torch

from engine.cost.macs import measure
from engine.settings.layers import load_settings
from engine.study.plan.reading import read_plan
from engine.study.plan.rows import planned_runs
from models import build
from models.finetune import Tuning
from models.interface import tokens_per_block
from tests.paths import CONFIGS, RUNS


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_parses_and_builds(path):
    settings = load_settings(str(path))
    with torch.device("meta"):
        model = build(settings.model)
        assert len(tokens_per_block(model)) in (0, getattr(settings.model, "depth", 0))
        if settings.finetune is not None:
            Tuning(model, settings.finetune, settings.train.lr)  # its parts and targets are there
    if model.img_size <= 32:
        model = build(settings.model).eval()
        logits = model(torch.zeros(2, model.in_chans, model.img_size, model.img_size))
        assert logits.shape == (2, settings.model.classes) and logits.isfinite().all()
    assert path.read_text().startswith("# tools/")


PLANS = sorted((CONFIGS / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_studies_mean_runs(path):
    runs = planned_runs(read_plan(str(path)))
    assert len({run.title for run in runs}) == len(runs) > 1
    assert path.read_text().startswith("# tools/study.py")


def test_each_has_a_name_of_its_own():
    names = [load_settings(str(path)).name for path in RUNS]
    assert len(set(names)) == len(names)


def test_the_plain_vit_costs_what_the_hybrid_costs():
    """Within 2 %: README's comparison stands on it."""
    macs = []
    for name in ("cifar10/hybrid", "cifar10/vit"):
        settings = load_settings(name)
        macs.append(measure(build(settings.model), settings=settings.model).macs)
    assert abs(macs[0] / macs[1] - 1) < 0.02


def test_there_are_configs():
    assert len(RUNS) >= 8
