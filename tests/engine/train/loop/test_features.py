"""Features of a frozen model are computed once, only where that changes nothing."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from engine.cli import cli
from engine.train.experiment import run_experiment
from engine.train.loop.features import HeadOnFeatures
from tests.engine.train.tuned_runs import PLAIN, VIT, settings_of, state_of

pytestmark = [pytest.mark.precision, pytest.mark.usefixtures("no_pictures")]


def test_kept_features_change_nothing(tuned, folder, tmp_path, caplog):
    """The same steps on the same images in the same order, whether the frozen part runs once or each time."""
    weights = {}
    for cache in ("memory", "disk", "none"):
        (tmp_path / cache).mkdir()
        settings = tuned("head")
        settings = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"cache": cache})})
        run_experiment(settings, tmp_path / cache)
        weights[cache] = state_of(tmp_path / cache)
        assert not list((tmp_path / cache).glob(".features*")), "no file is left behind"
    for name, value in weights["none"].items():
        assert torch.equal(weights["memory"][name], weights["disk"][name])
        torch.testing.assert_close(weights["memory"][name], value, atol=1e-5, rtol=1e-4)


def test_a_full_disk_shows_before_features_are_computed(tuned, folder, monkeypatch, capsys):
    """Not as a signal while they are written: a file with holes takes no room until then."""
    asked = []

    def full(descriptor: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    settings = tuned("head")
    settings = settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"cache": "disk"})})
    assert cli(lambda argv: run_experiment(settings, folder)) == 2
    error, file = capsys.readouterr().err, folder / ".features.train.npy"
    assert error.startswith(f"error: {file}: cannot be written, no space left on device; free some space, or ")
    assert error.count("\n") == 1 and not list(folder.glob(".features*")) and not list(folder.glob("*.pt"))
    assert asked == [4 * 325 * VIT["embed_dim"]]  # bytes: float32 of every training image


def test_features_are_used_only_where_they_say_the_same(tuned, folder, monkeypatch):
    """Augmented images have no features to keep, and a model with two heads has two kinds."""
    seen = []
    forward = HeadOnFeatures.forward
    monkeypatch.setattr(HeadOnFeatures, "forward", lambda self, x: seen.append(1) or forward(self, x))
    run_experiment(tuned("head", augment={**PLAIN, "crop": 1}), folder)
    assert not seen


def test_dropout_before_the_head_keeps_no_features(folder):
    model = {
        "name": "timm",
        "arch": "resnet10t",
        "img_size": 32,
        "in_chans": 1,
        "num_classes": 10,
        "options": {"drop_rate": 0.5},
    }
    data = {"name": "digits", "resize": 32}
    settings = settings_of(model=model, data=data, finetune={"mode": "head"}, train={"steps": 2})
    run_experiment(settings, folder)
    assert "features are not kept: dropout stands before the head" in (folder / "log.txt").read_text()
