"""A run to start from, for the tests of fine-tuning."""

from __future__ import annotations

import pytest

from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from tests.engine.train.tuned_runs import MODES, VIT, settings_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("base")


@pytest.fixture
def start(base):
    """A run to start from: a merged ViT on the digits."""
    if not (base / "results.json").exists():
        run_experiment(settings_of(train={"epochs": 1}), base)
    return str(base)


@pytest.fixture
def tuned(start):
    """Makes settings that start from that run."""

    def make(mode: str, **sections) -> RunSettings:
        return settings_of(model={**VIT, "weights": start}, finetune=MODES[mode], **sections)

    return make
