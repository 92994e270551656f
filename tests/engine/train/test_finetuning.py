"""Fine-tuning from end to end: what is trained and saved, and that a run can be read back and resumed."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from engine.measure.ensembles import evaluate_run
from engine.runs.checkpoints import checkpoint
from engine.runs.records.results import Results
from engine.runs.restore import load_run
from engine.settings.layers import load_settings
from engine.train.experiment import run_experiment
from engine.train.loop.trainer import Trainer
from models.settings import UserError
from tests.engine.data.conftest import save_image
from tests.engine.train.loop.test_trainer import assert_same_run, run_until
from tests.engine.train.tuned_runs import MODES, VIT, settings_of, state_of
from tests.marks import mostly_slow

pytestmark = [pytest.mark.precision, pytest.mark.usefixtures("no_pictures")]

AVERAGED = {"train": {"ema": 0.9}}


@pytest.fixture(scope="module")
def finished_runs():
    return {}


@pytest.fixture
def finished(finished_runs, tuned, tmp_path_factory):
    """Makes the folder of a finished run of each mode, once; tests must not change it. Returns it, and the results."""

    def make(mode: str) -> tuple[Path, Results]:
        if mode not in finished_runs:
            folder = tmp_path_factory.mktemp(mode)
            finished_runs[mode] = folder, run_experiment(tuned(mode, **AVERAGED), folder)
        return finished_runs[mode]

    return make


@pytest.mark.parametrize("mode", MODES)
def test_a_tuned_run_is_read_back_from_its_folder(mode, finished, start):
    folder, results = finished(mode)
    run = load_run(folder)
    assert evaluate_run(run, "test").metrics["top1"] == results.test_metrics["top1"]
    before, after = state_of(Path(start)), load_run(folder, which="last").model.state_dict()
    assert before.keys() == after.keys(), "adapters are gone, names are the plain model's"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {
        "head": {"head.weight", "head.bias"},
        "gradual": {n for n in before if n.startswith(("head.", "blocks.1.", "norm."))},
        "full": set(before),
        "lora": {"head.weight", "head.bias"} | {f"blocks.{i}.attn.{n}.weight" for i in (0, 1) for n in ("qkv", "proj")},
    }[mode]
    assert moved <= expected and len(moved) > 0.8 * len(expected)


def test_what_learnt_is_saved_alone_and_counted(finished):
    sizes = {}
    for mode in ("head", "lora", "full"):
        folder, results = finished(mode)
        sizes[mode] = results.saved_mib
        learnt = sum(value.numel() for value in state_of(folder).values())
        assert results.trained_params == learnt
        assert 0 < results.trained_share <= 1 and results.peak_memory_mib > 0 and results.seconds > 0
    assert sizes["head"] < sizes["lora"] < sizes["full"]


def test_the_part_that_is_not_saved_must_be_the_same(finished, start, tmp_path):
    folder, _ = finished("lora")
    other = tmp_path / "other"
    other.mkdir()
    state = checkpoint.load(Path(start) / "best.pt")
    checkpoint.save(other / "best.pt", {**state, "model": {n: v + 0.1 for n, v in state["model"].items()}})
    with pytest.raises(UserError, match=r"contains only what was trained, and model\.weights are not those"):
        load_run(folder, [f"model.weights={other}"])


def test_adapters_follow_another_merging(finished):
    """They go into the model that they were trained in, and merging is set when they are part of its weights."""
    folder, _ = finished("lora")
    trained, other = load_run(folder), load_run(folder, ["merge.r=5"])
    assert other.model.schedule == [5, 5] and not other.as_trained
    for name, value in trained.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crash_at", mostly_slow([9, 30], [30]))
def test_crashed_and_resumed_equals_uninterrupted(mode, crash_at, tuned, finished, folder, monkeypatch):
    """20 steps an epoch: in the first, and after `gradual` has begun its second group."""
    whole, _ = finished(mode)
    settings = tuned(mode, checkpoint={"every_steps": 4}, **AVERAGED)
    run_until(monkeypatch, crash_at, settings, folder)
    run_experiment(settings, folder, resume=True)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("mode", ["gradual", "lora"])
def test_resumed_without_the_weights_that_it_began_with(mode, tuned, start, tmp_path, monkeypatch):
    """A checkpoint has all that they became, and their statistics; with adapters it needs them, and says so."""
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(start, source)
    run.mkdir()
    settings = tuned(mode)
    model = settings.model.model_copy(update={"weights": str(source)})
    settings = settings.model_copy(update={"model": model})
    run_until(monkeypatch, 30, settings, run)
    before = checkpoint.load(run / "last.pt")["mean"]
    shutil.rmtree(source)
    if mode == "lora":
        with pytest.raises(UserError, match="no such file or folder"):
            run_experiment(settings, run, resume=True)
        moved = settings.model_copy(update={"model": settings.model.model_copy(update={"weights": start})})
        run_experiment(moved, run, resume=True)
    else:
        run_experiment(settings, run, resume=True)
    assert checkpoint.load(run / "best.pt")["mean"] == before


def test_a_group_that_never_begins_is_refused(tuned, folder):
    settings = tuned("gradual", train={"epochs": 1})
    with pytest.raises(UserError, match=r"finetune\.groups\.epoch = 1: the run has 1 epoch,"):
        run_experiment(settings, folder)


def test_gradual_says_what_learns_and_at_which_rate(tuned, folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hybridmerge")
    logging.getLogger("hybridmerge").propagate = True
    rates = []
    step = Trainer.step

    def watched(self, batches):
        lr = step(self, batches)
        groups = self.optimization.optimizer.param_groups
        rates.append({(g["scale"], any(p.grad is not None for p in g["params"])) for g in groups})
        return lr

    monkeypatch.setattr(Trainer, "step", watched)
    run_experiment(tuned("gradual"), folder)
    said = (folder / "log.txt").read_text()
    assert said.count("learning: ") == 2 and "blocks.1" in said.split("learning: ")[2]
    learning = [{scale for scale, learns in groups if learns} for groups in rates]
    assert sorted(learning[0]) == pytest.approx([1 / 3])
    assert sorted(learning[-1]) == pytest.approx([1 / 30, 1 / 3])


def test_steps_and_warmup_ratio(tuned, folder):
    """13 steps, of which the epoch has 20: a part of an epoch is validated and kept like a whole one."""
    results = run_experiment(tuned("full", train={"steps": 33, "warmup_ratio": 0.1}), folder)
    assert (results.steps, results.epochs) == (33, 2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/top1" in line] == [20, 33]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[0] == pytest.approx(0.001) and rates[2] == pytest.approx(0.003) and rates[4] < rates[3]


def test_a_rate_for_another_batch_is_warned_about(tuned, folder):
    run_experiment(tuned("full", train={"epochs": 1, "lr_batch": 64}), folder)
    said = (folder / "log.txt").read_text()
    assert "is for 64 images per step (train.lr_batch), this run has 16: use train.lr=0.00075, or train.acc" in said


def test_textures_then_scenes(folder, tmp_path):
    """A chain of two runs on folders of images, of other classes: the head is new, the rest goes on."""
    for name, classes in (("textures", 3), ("scenes", 2)):
        for label in range(classes):
            for i in range(12):
                save_image(tmp_path / name / f"class {label}" / f"{i}.png", 100 * label + i, (20, 16))
    common = [
        "name=a",
        "threads=1",
        "device=cpu",
        "data.name=folder",
        "model.name=vit",
        "model.img_size=16",
        "model.patch_size=4",
        "model.in_chans=3",
        "model.embed_dim=16",
        "model.depth=2",
        "model.num_heads=2",
        "train.epochs=1",
        "train.batch_size=4",
        "augment.crop=0",
    ]
    first = load_settings("digits/vit", [*common, f"data.path={tmp_path / 'textures'}", "model.num_classes=3"])
    assert first.data.size == 16
    run_experiment(first, folder)
    (tmp_path / "second").mkdir()
    second = [*common, f"data.path={tmp_path / 'scenes'}", "model.num_classes=2", f"model.weights={folder}"]
    results = run_experiment(load_settings("digits/vit", second), tmp_path / "second")
    said = (tmp_path / "second" / "log.txt").read_text()
    assert "head left as initialised: head.weight [file (3, 16), model (2, 16)]" in said
    assert results.method == "full" and "100.0% of the parameters before the head" in said


def test_batches_are_brought_to_the_models_size(folder):
    settings = settings_of(model={**VIT, "img_size": 12}, data={"name": "digits", "resize": 12}, train={"epochs": 1})
    results = run_experiment(settings, folder)
    assert results.test_images == 360 and load_run(folder).data.shape == (1, 12, 12)


def test_conformer_learns_by_both_heads(folder, monkeypatch):
    model = {
        "name": "conformer",
        "img_size": 8,
        "patch_size": 4,
        "stem_stride": 1,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
        "base_channel": 16,
        "channel_ratio": 1,
    }
    run_experiment(settings_of(model=model, train={"epochs": 1}), folder)
    run = load_run(folder)
    images = run.data.test.images[:4].float() / 255
    with torch.inference_mode():
        conv, trans = run.model.eval().forward_heads(images)
        torch.testing.assert_close(run.model(images), conv + trans)


def test_many_labels(folder, tmp_path):
    """Each image's label says whether it is bright, and whether its left half is brighter than its right."""
    rows = [("path", "bright", "left", "never")]
    for i in range(60):
        path = save_image(tmp_path / "images" / f"{i}.png", i, (8, 8))
        rows.append((path.name, i % 2, (i // 2) % 2, 0))
    with open(tmp_path / "images" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = {"name": "csv", "path": str(tmp_path / "images" / "table.csv"), "labels": "many", "size": 8}
    given = {"data": data, "model": {**VIT, "in_chans": 3, "num_classes": 3}, "split": {"val": 0.2}}
    results = run_experiment(settings_of(**given, train={"batch_size": 8}), folder)
    assert results.metric == "map" and 0 < results.test_metrics["map"] <= 1 and results.test_images == 12
    assert len(results.thresholds) == 3 and results.thresholds["never"] == 0.5
    assert evaluate_run(load_run(folder), "test").metrics["map"] == results.test_metrics["map"]
    for key, sections in (("mixup", {"augment": {"mixup": 0.2}}), ("smoothing", {"train": {"label_smoothing": 0.1}})):
        with pytest.raises(UserError, match=key):
            run_experiment(settings_of(**{**given, "train": {"batch_size": 8}, **sections}), tmp_path)
