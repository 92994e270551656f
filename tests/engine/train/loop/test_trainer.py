"""Training: what is learnt, what a run leaves behind, and that an interrupted run ends as if it had not been."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.measure.ensembles import evaluate_run
from engine.measure.evaluate import Evaluation
from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.restore import load_run
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from engine.train.loop.objective import Objective
from engine.train.loop.optim import LearningRate
from engine.train.loop.trainer import Trainer
from engine.train.loop.validation import Validation
from models.settings import UserError, check
from tests.engine.conftest import TINY
from tests.marks import mostly_slow
from tests.quiet import end_log

pytestmark = [pytest.mark.precision, pytest.mark.usefixtures("no_pictures")]

STEPS_PER_EPOCH = 10  # 325 training images: 20 micro-batches of 16, two to a step


def metrics(folder) -> list[dict]:
    """metrics.jsonl without what depends on the clock and on the process."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_mib")} for line in lines]


def flat(tree, prefix=""):
    """Every tensor and value of a checkpoint under its path."""
    if isinstance(tree, dict):
        return {name: v for key, value in tree.items() for name, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {name: v for i, value in enumerate(tree) for name, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: tree}


def assert_same_run(one, other):
    """Weights, average, optimizer and progress bit for bit, and the same lines of metrics."""
    for name in ("last.pt", "best.pt"):
        a, b = flat(checkpoint.load(one / name)), flat(checkpoint.load(other / name))
        assert a.keys() == b.keys()
        for key in a.keys() - {"/progress/seconds"}:
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key
    assert metrics(one) == metrics(other)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for key in ("test_top1", "test_loss", "val_top1", "best_step", "steps"):
        assert results[0][key] == results[1][key]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that nothing happened to, with its pictures."""
    folder = tmp_path_factory.mktemp("reference")
    run_experiment(check(RunSettings, TINY), folder)
    end_log()
    return folder


class Crash(Exception):
    """Stands for whatever ends a process."""


def run_until(monkeypatch, crash_at: int, settings, folder) -> None:
    """Runs an experiment that crashes as it tells what step `crash_at` has learnt."""
    scalars = Tracker.scalars

    def crashing(self, step, values):
        if step == crash_at and "train/loss" in values:
            raise Crash
        scalars(self, step, values)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Tracker, "scalars", crashing)
        run_experiment(settings, folder)


@pytest.mark.parametrize("crash_at", mostly_slow([1, 4, 10, 13, 17, 29, 30], [17, 30]))
def test_crashed_and_resumed_equals_uninterrupted(reference, tiny, folder, monkeypatch, crash_at):
    """From the middle of an epoch, its end, the first step and the last; lost steps are done again, the same."""
    settings = tiny(checkpoint={"every_steps": 4})
    run_until(monkeypatch, crash_at, settings, folder)
    run_experiment(settings, folder, resume=True)
    assert_same_run(reference, folder)


def test_what_a_merging_method_learns_is_resumed_too(tiny, tmp_path, monkeypatch):
    model = {**tiny().model.model_dump(), "merge": {"method": "sit", "r": 3}}
    settings = tiny(model=model, train={"epochs": 1}, checkpoint={"every_steps": 4}, split={"part": 0.1})
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    run_experiment(settings, tmp_path / "straight")
    run_until(monkeypatch, 3, settings, tmp_path / "stopped")
    run_experiment(settings, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    weights = checkpoint.load(tmp_path / "stopped" / "last.pt")["model"]
    assert any("merge.pooling" in name for name in weights)


SIGNALS = list(itertools.product([7, 20], [signal.SIGTERM, signal.SIGINT]))


@pytest.mark.parametrize(("at", "number"), mostly_slow(SIGNALS, [(7, signal.SIGTERM), (20, signal.SIGINT)]))
def test_a_signal_ends_the_step_and_saves(reference, tiny, folder, monkeypatch, at, number):
    scalars = Tracker.scalars

    def signalled(self, step, values):
        scalars(self, step, values)
        if step == at:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Tracker, "scalars", signalled)
        # at the end of an epoch there are two lines at one step: the second signal would end the program at once
        patch.setattr(os, "kill", lambda pid, n, kill=os.kill, sent=[]: sent or (sent.append(1), kill(pid, n)))
        run_experiment(tiny(), folder)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] == at
    run_experiment(tiny(), folder, resume=True)
    assert_same_run(reference, folder)


def test_resuming_a_finished_run_changes_nothing(reference, tiny, folder):
    before = (reference / "last.pt").read_bytes(), (reference / "results.json").read_text()
    results = run_experiment(tiny(), reference, resume=True)
    assert results.steps == 3 * STEPS_PER_EPOCH
    assert (reference / "last.pt").read_bytes() == before[0]


def test_resuming_with_other_settings_is_refused(reference, tiny):
    with pytest.raises(UserError, match=r"train\.lr = 0\.01.*0\.003"):
        run_experiment(tiny(train={"lr": 0.01}), reference, resume=True)
    with pytest.raises(UserError, match=r"model\.merge\.r"):
        run_experiment(tiny(model={"merge": {"method": "tome", "r": 2}}), reference, resume=True)
    run_experiment(tiny(log={"every_steps": 5}, threads=1), reference, resume=True)


def test_the_run_folder_holds_everything(reference):
    names = {path.name for path in reference.iterdir()}
    assert {"settings.yaml", "log.txt", "metrics.jsonl", "results.json", "last.pt", "best.pt"} <= names
    assert {"predictions.csv", "confusion.png", "confused.png"} <= names
    results = RunFolder(reference).read_results()
    assert results.steps == 3 * STEPS_PER_EPOCH and results.train_images == 325 and results.test_images == 360
    assert 0 < results.test_metrics["top1"] < results.test_metrics["top5"] <= 1
    assert results.params > 0 and results.gmacs > 0 and results.seconds > 0
    assert results.images_per_second == pytest.approx(results.steps * 32 / results.seconds)
    assert results.peak_memory_mib > 50 and results.versions["torch"] and results.tokens == [14, 11]
    assert "tokens removed by each block: [3, 3]" in (reference / "log.txt").read_text()
    lines = metrics(reference)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 31))
    assert [line["step"] for line in lines if "val/top1" in line] == [10, 20, 30]


def test_tensorboard_shows_what_the_issue_names(reference):
    events = EventAccumulator(str(reference), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert {
        "loss/train",
        "loss/val",
        "metrics/train_accuracy",
        "metrics/val_top1",
        "metrics/val_top5",
        "metrics/val_balanced_accuracy",
        "training/lr",
        "training/images_per_second",
        "training/memory_mib",
    } == set(tags["scalars"])
    assert all(len(events.Scalars(tag)) > 1 for tag in tags["scalars"]), "a chart with one dot"
    assert tags["images"] == ["wrong/val", "test/confusion", "test/confused", "wrong/test"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert [path.name for path in reference.iterdir() if path.is_dir()] == []  # no run of its own for hparams


def test_a_run_folder_alone_reproduces_its_accuracy(reference):
    run = load_run(reference)
    assert evaluate_run(run, "test").metrics["top1"] == run.results.test_metrics["top1"]
    assert evaluate_run(run, "val").metrics["top1"] == run.results.val_score


def test_best_is_the_best_and_is_the_average(tiny, folder, monkeypatch):
    """Scripted accuracies: the second of three epochs is the best, and stays; what is kept is the moving average."""
    scores, averages = iter([0.2, 0.9, 0.5]), []

    def scripted(self, model, step):
        averages.append({name: value.clone() for name, value in model.state_dict().items()})
        return Evaluation(n=1, loss=1.0, metrics={"top1": next(scores)})

    monkeypatch.setattr(Validation, "run", scripted)
    results = run_experiment(tiny(), folder)
    best, last = checkpoint.load(folder / "best.pt"), checkpoint.load(folder / "last.pt")
    assert results.best_step == best["step"] == 2 * STEPS_PER_EPOCH and results.val_score == 0.9
    assert all(torch.equal(value, averages[1][name]) for name, value in best["model"].items())
    assert all(torch.equal(value, averages[2][name]) for name, value in last["ema"]["shadow"].items())
    assert not torch.equal(last["model"]["vit.head.weight"], averages[2]["vit.head.weight"])


def test_rate_clipping_and_smoothing_reach_the_optimizer_and_the_loss(tiny, folder, monkeypatch):
    """What the settings say is what the step sees: the scheduled rate, clipped gradients, the smoothed loss."""
    settings = tiny(
        train={"epochs": 2, "clip_norm": 0.01, "warmup_epochs": 1.0, "ema": 0.0, "precision": "fp32"},
        augment={"mixup": 0.0, "cutmix": 0.0},
    )
    rates, norms, losses = [], [], []
    step, cross_entropy = torch.optim.AdamW.step, torch.nn.functional.cross_entropy

    def spied_step(self, *args, **kwargs):
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        rates.append({group["lr"] for group in self.param_groups})
        return step(self, *args, **kwargs)

    def spied_loss(logits, targets, **kwargs):
        if logits.requires_grad:
            log_p = logits.log_softmax(1)
            right = log_p.gather(1, targets[:, None])[:, 0]
            losses.append((-(0.9 * right + 0.1 * log_p.mean(1))).mean() - cross_entropy(logits, targets, **kwargs))
        return cross_entropy(logits, targets, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied_step)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spied_loss)
    run_experiment(settings, folder)
    rate = LearningRate(0.003, total_steps=20, warmup_steps=10)
    expected = [rate.at(i) for i in range(20)]
    assert [rate for (rate,) in rates] == expected
    assert [line["lr"] for line in metrics(folder) if "lr" in line] == expected
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms)
    assert len(losses) == 40 and all(abs(loss) < 1e-5 for loss in losses)


def test_resuming_on_other_data_is_refused(tiny, folder, tmp_path, monkeypatch):
    """Same path, same classes, other images."""

    def write(seed):
        rng = np.random.default_rng(seed)
        arrays = {f"{split}_images": rng.integers(0, 256, (64, 8, 8), dtype=np.uint8) for split in ("train", "test")}
        labels = {f"{split}_labels": np.arange(64) % 10 for split in ("train", "test")}
        np.savez(tmp_path / "data.npz", **arrays, **labels)

    settings = tiny(data={"name": "npz", "path": str(tmp_path / "data.npz")}, split={"val": 0.2, "part": 1.0})
    write(0)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Trainer, "save", lambda self, save=Trainer.save: (save(self), crash()))
        run_experiment(settings, folder)
    before = (folder / "last.pt").read_bytes()
    write(1)
    with pytest.raises(UserError, match="not those that this run was trained on"):
        run_experiment(settings, folder, resume=True)
    write(0)
    assert (folder / "last.pt").read_bytes() == before
    assert run_experiment(settings, folder, resume=True).steps == 3


def crash():
    raise Crash


def test_a_validation_loss_that_is_not_finite_keeps_the_best(tiny, folder, monkeypatch):
    evaluated = iter([Evaluation(1, 1.0, {"top1": 0.1}), Evaluation(1, math.nan, {"top1": 0.9})])
    monkeypatch.setattr(Validation, "run", lambda self, model, step: next(evaluated))
    with pytest.raises(UserError, match="the validation loss is nan after step 20"):
        run_experiment(tiny(), folder)
    assert checkpoint.load(folder / "best.pt")["step"] == 10


def test_one_value_per_channel_is_said(tiny, folder):
    one = {"train": {"batch_size": 1, "accumulate": 1}, "augment": {"mixup": 0.0, "cutmix": 0.0}}
    with pytest.raises(UserError, match=r"train\.batch_size = 1: BatchNorm"):
        run_experiment(tiny(**one, model={"patch_size": 8}), folder)


def test_one_batch_can_be_learnt_by_heart(tiny, folder):
    settings = tiny(
        augment={"crop": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0},
        split={"val": 0.0, "part": 0.03},
        train={"epochs": 60, "batch_size": 32, "accumulate": 1, "ema": 0.0, "label_smoothing": 0.0, "lr": 0.01},
    )
    run_experiment(settings, folder)
    learnt = metrics(folder)
    assert learnt[0]["train/accuracy"] < 0.5
    assert learnt[-1]["train/accuracy"] == 1.0 and learnt[-1]["train/loss"] < 0.2


def test_accumulation_is_the_large_batch(tiny, folder, tmp_path):
    """Without BatchNorm and random draws, 8 x 8 takes the step of 64, to rounding."""
    plain = {
        "model": {"stem": "patch", "drop_path_rate": 0.0, "cnn": {"block": "convnext", "depth": 1}},
        "augment": {"mixup": 0.0, "cutmix": 0.0},
        "log": {"every_steps": 1},
    }
    weights = []
    for name, size, parts in (("large", 64, 1), ("parts", 8, 8)):
        (tmp_path / name).mkdir()
        fast = {"epochs": 1, "ema": 0.0, "precision": "fp32", "optimizer": "sgd", "lr": 0.1}
        run_experiment(tiny(**plain, train={"batch_size": size, "accumulate": parts, **fast}), tmp_path / name)
        weights.append(checkpoint.load(tmp_path / name / "last.pt")["model"])
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_step(tiny, folder, monkeypatch):
    forward, calls = Objective.forward, itertools.count()

    def exploding(self, *args):
        loss, correct = forward(self, *args)
        return (loss * math.nan if next(calls) >= 2 * 14 else loss), correct  # from step 15 on

    monkeypatch.setattr(Objective, "forward", exploding)
    words = r"train\.lr = 0\.003: the loss is nan after step 14 \(epoch 2\).*best\.pt and last\.pt"
    with pytest.raises(UserError, match=words):
        run_experiment(tiny(), folder)
    for name in ("last.pt", "best.pt"):
        weights = checkpoint.load(folder / name)["model"]
        assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"num_classes": 7}}, "model.num_classes = 7: the data has 10; set model.num_classes=10"),
        ({"model": {"img_size": 32}}, "model.img_size = 32: the data has 8"),
        ({"model": {"in_chans": 3}}, "model.in_chans = 3: the data has 1"),
        ({"train": {"batch_size": 5000}}, "train.batch_size = 5000"),
        ({"train": {"batch_size": 200, "accumulate": 2}}, "train.accumulate = 2"),
        ({"device": "cuda:77"}, "device = 'cuda:77'"),
    ],
)
def test_what_does_not_fit_is_said_before_training(tiny, folder, sections, words):
    with pytest.raises(UserError) as error:
        run_experiment(tiny(**sections), folder)
    assert words in str(error.value)
    assert not (folder / "last.pt").exists()


def test_out_of_memory_says_what_to_change(tiny, folder, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Objective, "forward", full)
    with pytest.raises(UserError, match=r"train\.batch_size=8 train\.accumulate=4"):
        run_experiment(tiny(), folder)


@pytest.mark.parametrize("stopped_at", mostly_slow([None, 13, 3], [13]))
def test_a_run_goes_on_for_more_epochs(reference, tiny, folder, monkeypatch, stopped_at):
    """After its end, or from where it was stopped: the learning rate follows the new total from there on."""
    if stopped_at is None:
        shutil.copytree(reference, folder, dirs_exist_ok=True)
    else:
        run_until(monkeypatch, stopped_at, tiny(checkpoint={"every_steps": 4}), folder)
    last = folder / "last.pt"
    start = checkpoint.load(last)["progress"]["step"] if last.exists() else 0  # stopped before the first checkpoint
    results = run_experiment(tiny(train={"epochs": 5}), folder, resume=True)
    assert results.steps == 5 * STEPS_PER_EPOCH and results.epochs == 5
    old, new = (LearningRate(0.003, total_steps=epochs * STEPS_PER_EPOCH) for epochs in (3, 5))
    rates = {line["step"] - 1: line["lr"] for line in metrics(folder) if "lr" in line}
    assert rates == {step: (old if step < start else new).at(step) for step in range(50)}
    said = (folder / "log.txt").read_text()
    assert f"train.epochs = 5, started with 3: from step {start} on the learning rate follows" in said
    assert run_experiment(tiny(train={"epochs": 5}), folder, resume=True) == results
    with pytest.raises(UserError, match=r"train\.epochs = 4: the run was started with 5"):
        run_experiment(tiny(train={"epochs": 4}), folder, resume=True)
    for kept in folder.glob("last*.pt"):
        kept.unlink()
    with pytest.raises(UserError, match=r"train\.epochs = 6, .* has no last\.pt to continue from"):
        run_experiment(tiny(train={"epochs": 6}), folder, resume=True)


def test_a_run_without_validation_keeps_its_last_weights_when_it_goes_on(tiny, folder):
    settings = {"split": {"val": 0.0, "part": 0.1}}
    run_experiment(tiny(**settings), folder)
    results = run_experiment(tiny(**settings, train={"epochs": 4}), folder, resume=True)
    assert results.best_step == results.steps == checkpoint.load(folder / "best.pt")["step"]


def test_a_run_that_goes_on_and_is_stopped_is_not_finished(reference, tiny, folder, monkeypatch):
    """Its old results do not stand for it."""
    shutil.copytree(reference, folder, dirs_exist_ok=True)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Trainer, "_end_epoch", lambda self, epoch: crash())
        run_experiment(tiny(train={"epochs": 4}), folder, resume=True)
    assert not (folder / "results.json").exists()
    assert run_experiment(tiny(train={"epochs": 4}), folder, resume=True).steps == 4 * STEPS_PER_EPOCH
