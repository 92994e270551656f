"""What a run starts from: another run's weights, their statistics, and files that are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import built, start_weights
from engine.runs.restore import load_run
from engine.train.experiment import run_experiment
from models.settings import UserError
from tests.engine.train.tuned_runs import MODES, VIT, settings_of
from tests.marks import mostly_slow

pytestmark = [pytest.mark.precision, pytest.mark.usefixtures("no_pictures")]


@pytest.mark.parametrize("mode", mostly_slow(["head", "lora"], ["lora"]))
def test_a_run_that_saved_only_what_learnt_can_be_started_from(mode, tuned, folder, tmp_path):
    run_experiment(tuned(mode), folder)
    settings = tuned("full")
    model = settings.model.model_copy(update={"weights": str(folder)})
    (tmp_path / "next").mkdir()
    run_experiment(settings.model_copy(update={"model": model}), tmp_path / "next")
    assert "weights: " in (tmp_path / "next" / "log.txt").read_text()
    part = settings.model.model_copy(update={"weights": str(folder / "best.pt")})
    (tmp_path / "part").mkdir()
    with pytest.raises(UserError, match="contains only what its run trained; give the run folder"):
        run_experiment(settings.model_copy(update={"model": part}), tmp_path / "part")


@pytest.mark.parametrize(
    "given", mostly_slow(["copy", "copy/best.pt", "bare", "bare/other.pt"], ["copy", "bare/other.pt"])
)
def test_statistics_come_with_the_weights(given, start, folder, tmp_path):
    """Of a run folder, of a folder that has nothing but a checkpoint, and of a checkpoint by its own name."""
    source = tmp_path / given.partition("/")[0]
    shutil.copytree(start, source) if source.name == "copy" else source.mkdir()
    file = source / (given.partition("/")[2] or "best.pt")
    state = checkpoint.load(Path(start) / "best.pt")
    checkpoint.save(file, {**state, "mean": [0.25], "std": [0.5]})
    assert state["mean"] != [0.25]
    settings = settings_of(model={**VIT, "weights": str(tmp_path / given)}, finetune=MODES["head"], train={"steps": 2})
    run_experiment(settings, folder)
    run = load_run(folder)
    assert run.data.mean == (0.25,) and run.data.std == (0.5,)


@pytest.mark.parametrize("given", ["run", "run/best.pt", "copy.pt"])
def test_a_run_says_its_number_of_heads(given, start, tmp_path, caplog):
    """The weights of any number have the same shapes, and compute something else."""
    weights = tmp_path / given
    if given == "copy.pt":
        shutil.copy(Path(start) / "best.pt", weights)
    else:
        shutil.copytree(start, tmp_path / "run")
    settings = settings_of(model={**VIT, "weights": str(weights), "num_heads": 2 * VIT["num_heads"]})
    with pytest.raises(UserError, match=rf"was trained with {VIT['num_heads']}, .*; use model.num_heads"):
        start_weights(built(settings), settings)
    settings = settings_of(model={**VIT, "weights": str(weights)})
    with caplog.at_level("INFO"):
        start_weights(built(settings), settings)
    assert "weights: " in caplog.text and "does not say" not in caplog.text


def test_a_file_of_others_does_not_say_its_number_of_heads(start, tmp_path, caplog):
    torch.save(checkpoint.load(Path(start) / "best.pt")["model"], tmp_path / "best.pt")
    settings = settings_of(model={**VIT, "weights": str(tmp_path / "best.pt")})
    with caplog.at_level("INFO"):
        start_weights(built(settings), settings)
    assert "does not say how many attention heads" in caplog.text


def test_somebody_elses_file_has_no_statistics(tmp_path):
    torch.save({"format": 1, "model": {}, "mean": [0.25], "std": [0.5]}, tmp_path / "best.pt")
    assert checkpoint.statistics(tmp_path / "best.pt") is None
    (tmp_path / "best.pt").write_bytes(b"")
    assert checkpoint.statistics(tmp_path / "best.pt") is None


def test_a_checkpoint_with_a_flipped_bit_is_no_start(start, tmp_path):
    """torch reads it without a word; what it was sealed with does not match."""
    copy = tmp_path / "copy.pt"
    shutil.copy(Path(start) / "best.pt", copy)
    model = built(settings_of())
    start_weights(model, settings_of(model={**VIT, "weights": str(copy)}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(damaged)
    with pytest.raises(UserError, match=r"copy.pt: damaged, its bytes do not match its SHA-256"):
        start_weights(model, settings_of(model={**VIT, "weights": str(copy)}))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_weights_are_read_once(tuned, start, folder, monkeypatch):
    """Settings and statistics take only their own few bytes of the file."""
    reads = []
    read = checkpoint._read

    def watched(path: Path, *args, **kwargs):
        reads.append((path, kwargs.get("mmap", False)))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "_read", watched)
    run_experiment(tuned("full", train={"steps": 2}), folder)
    best = Path(start) / "best.pt"
    assert [mapped for path, mapped in reads if path == best].count(False) == 1
