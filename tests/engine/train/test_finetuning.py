"""Fine-tuning from end to end: what a run starts from, what learns, what is saved, and that it can be read back."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from engine.cli import cli
from engine.measure.ensembles import evaluate_run
from engine.runs import checkpoint
from engine.runs.restore import load_run
from engine.runs.weights import built, start_weights
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.tasks import best_thresholds
from engine.train.experiment import run_experiment
from engine.train.loop.features import HeadOnFeatures
from engine.train.loop.trainer import Trainer
from models.settings import UserError, check
from tests.engine.data.conftest import save_image
from tests.engine.train.loop.test_trainer import assert_same_run, run_until

pytestmark = pytest.mark.precision

PLAIN = {"crop": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
VIT = {
    "name": "vit",
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "merge": {"r": 3},
}
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.003}
SPLIT = {"val": 0.1, "part": 0.25}


def settings_of(**sections) -> RunSettings:
    """Settings of a short run on the digits; a section replaces the whole section."""
    body = {
        "name": "tuned",
        "threads": 1,
        "device": "cpu",
        "model": VIT,
        "data": {"name": "digits"},
        "split": SPLIT,
        "augment": PLAIN,
        "train": {},
        "log": {"every_steps": 1, "images": 4},
        **sections,
    }
    return check(RunSettings, {**body, "train": {**SHORT, **body["train"]}})


MODES = {
    "head": {"mode": "head"},
    "gradual": {
        "mode": "gradual",
        "groups": [{"parts": ["head"], "lr": 1e-3}, {"parts": ["blocks.1", "norm"], "epoch": 1, "lr": 1e-4}],
    },
    "full": {"mode": "full", "layer_decay": 0.5},
    "lora": {"mode": "lora", "rank": 2, "dropout": 0.1},
}


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


def state_of(run) -> dict:
    return checkpoint.load(run / "best.pt")["model"]


@pytest.mark.parametrize("mode", MODES)
def test_a_tuned_run_is_read_back_from_its_folder(mode, tuned, folder, start):
    results = run_experiment(tuned(mode), folder)
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


def test_what_learnt_is_saved_alone_and_counted(tuned, folder, tmp_path):
    sizes = {}
    for mode in ("head", "lora", "full"):
        (tmp_path / mode).mkdir()
        results = run_experiment(tuned(mode), tmp_path / mode)
        sizes[mode] = results.saved_mib
        learnt = sum(value.numel() for value in state_of(tmp_path / mode).values())
        assert results.trained_params == learnt
        assert 0 < results.trained_share <= 1 and results.peak_memory_mib > 0 and results.seconds > 0
    assert sizes["head"] < sizes["lora"] < sizes["full"]


def test_the_part_that_is_not_saved_must_be_the_same(tuned, folder, start, tmp_path):
    run_experiment(tuned("lora"), folder)
    other = tmp_path / "other"
    other.mkdir()
    state = checkpoint.load(Path(start) / "best.pt")
    checkpoint.save(other / "best.pt", {**state, "model": {n: v + 0.1 for n, v in state["model"].items()}})
    with pytest.raises(UserError, match=r"contains only what was trained, and model\.weights are not those"):
        load_run(folder, [f"model.weights={other}"])


def test_adapters_follow_another_merging(tuned, folder):
    """They go into the model that they were trained in, and merging is set when they are part of its weights."""
    run_experiment(tuned("lora"), folder)
    trained, other = load_run(folder), load_run(folder, ["merge.r=5"])
    assert other.model.schedule == [5, 5] and not other.as_trained
    for name, value in trained.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


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
    assert error.count("\n") == 1 and not file.exists() and not list(folder.glob("*.pt"))
    assert asked == [4 * 325 * VIT["embed_dim"]]  # bytes: float32 of every training image


def test_features_are_used_only_where_they_say_the_same(tuned, folder, monkeypatch):
    """Augmented images have no features to keep, and a model with two heads has two kinds."""
    seen = []
    forward = HeadOnFeatures.forward
    monkeypatch.setattr(HeadOnFeatures, "forward", lambda self, x: seen.append(1) or forward(self, x))
    run_experiment(tuned("head", augment={**PLAIN, "crop": 1}), folder)
    assert not seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crash_at", [9, 30])
def test_crashed_and_resumed_equals_uninterrupted(mode, crash_at, tuned, tmp_path, monkeypatch):
    """20 steps an epoch: in the first, and after `gradual` has begun its second group."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    settings = tuned(mode, checkpoint={"every_steps": 4}, train={"ema": 0.9})
    run_experiment(settings, whole)
    run_until(monkeypatch, crash_at, settings, parts)
    run_experiment(settings, parts, resume=True)
    assert_same_run(whole, parts)


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


@pytest.mark.parametrize("mode", ["head", "lora"])
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


def test_a_group_that_never_begins_is_refused(tuned, folder):
    settings = tuned("gradual", train={"epochs": 1})
    with pytest.raises(UserError, match=r"finetune\.groups\.epoch = 1: the run has 1 epochs"):
        run_experiment(settings, folder)


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


def test_gradual_says_what_learns_and_at_which_rate(tuned, folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hybridmerge")
    logging.getLogger("hybridmerge").propagate = True
    rates = []
    step = Trainer._step

    def watched(self, batches):
        lr = step(self, batches)
        groups = self.optimization.optimizer.param_groups
        rates.append({(g["scale"], any(p.grad is not None for p in g["params"])) for g in groups})
        return lr

    monkeypatch.setattr(Trainer, "_step", watched)
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


@pytest.mark.parametrize("given", ["copy", "copy/best.pt", "bare", "bare/other.pt"])
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
    """Statistics take only their own few bytes of the file."""
    reads = []
    read = checkpoint._read

    def watched(path: Path, *args, **kwargs):
        reads.append((path, kwargs.get("mmap", False)))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "_read", watched)
    run_experiment(tuned("full", train={"steps": 2}), folder)
    best = Path(start) / "best.pt"
    assert [mapped for path, mapped in reads if path == best] == [False, True]


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


def test_best_thresholds_by_trying_them_all():
    rng = torch.Generator().manual_seed(0)
    scores = (torch.rand(40, 3, generator=rng) * 20).round() / 20  # with ties
    truth = (torch.rand(40, 3, generator=rng) < 0.4).float()
    truth[:, 2] = 0

    def f1(column: int, threshold: float) -> float:
        said = scores[:, column] >= threshold
        return float(2 * (said * truth[:, column]).sum() / (said.sum() + truth[:, column].sum()).clamp(min=1))

    found = best_thresholds(scores, truth)
    assert found[2] == 0.5
    for column in (0, 1):
        most = max(f1(column, threshold) for threshold in torch.linspace(0, 1, 201).tolist())
        assert f1(column, found[column]) == pytest.approx(most)
