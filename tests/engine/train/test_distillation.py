"""Distillation: the loss by hand, what may teach, and that a run with a teacher resumes as any other."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from engine.runs.checkpoints import checkpoint
from engine.runs.restore import load_run
from engine.settings.distill import DistillSettings
from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.tasks import MANY_LABELS, ONE_LABEL
from engine.train.experiment import run_experiment
from engine.train.folds import run_folds
from engine.train.loop.distillation import DistilledObjective, Teacher, between_tokens
from engine.train.loop.objective import Objective
from models.builders import build_model
from models.interface import last_tokens
from models.merging import unmerge, wrap
from models.settings import UserError
from models.weights.hubs import HUBS
from tests.engine.train.loop.test_trainer import assert_same_run, run_until
from tests.engine.train.tuned_runs import MODES, VIT, settings_of
from tests.marks import mostly_slow

pytestmark = pytest.mark.usefixtures("no_pictures")

FP32 = torch.autocast("cpu", enabled=False)
PLAIN = ((0.0,), (1.0,), (0.0,), (1.0,))  # the same statistics for both
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def vit(seed: int, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("vit", **{key: value for key, value in VIT.items() if key not in ("name", "merge")}, **options)


def teacher(model: nn.Module, tokens: bool = False, statistics: tuple = PLAIN) -> Teacher:
    return Teacher(model, FP32, *statistics, model.img_size, tokens)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_the_papers_written_out(temperature):
    student, wise = vit(0, merge={"r": 5}), vit(1)
    images, labels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6)
    settings = DistillSettings(logits=0.3, temperature=temperature, tokens=2.0)
    objective = DistilledObjective(student, ONE_LABEL, FP32, 0.0, None, teacher(wise, tokens=True), settings)
    loss, correct = objective(images, labels)

    logits, taught = student(images), wise(images).detach()
    p, q = ((values / temperature).softmax(1) for values in (taught, logits))
    divergence = (p * (p / q).log()).sum(1).mean()
    differences = []
    (own, tokens), (theirs, _) = (run_without_norm(model, images) for model in (student, wise))
    for i in range(6):
        for place in range(own.shape[1] + 10):  # the class token and 16 patches, of which ten merged
            a, b = own[i, tokens.index[i, place]], theirs[i, place]
            differences += [(normalised(a) - normalised(b)).square().mean()]
    assert len(differences) == 6 * 17
    expected = 0.7 * F.cross_entropy(logits, labels) + 0.3 * temperature**2 * divergence
    expected = expected + 2 * torch.stack(differences).mean()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    assert correct == (logits.argmax(1) == labels).sum()


def normalised(token: torch.Tensor) -> torch.Tensor:
    return (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()


def run_without_norm(model: nn.Module, images: torch.Tensor) -> tuple:
    """A ViT's tokens after its last block, before the norm, and their state."""
    norm, model.norm = model.norm, nn.Identity()
    try:
        return model.forward_features(images)
    finally:
        model.norm = norm


def test_many_labels_learn_the_probability_of_each():
    student, wise = vit(0), vit(1)
    images, labels = torch.randn(4, 1, 8, 8), (torch.randn(4, 10) > 0).float()
    loss, _ = DistilledObjective(
        student, MANY_LABELS, FP32, 0.0, None, teacher(wise), DistillSettings(logits=1.0, temperature=2.0)
    )(images, labels)
    p, q = ((model(images) / 2).sigmoid() for model in (wise, student))
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(loss, 4 * divergence.mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", [ONE_LABEL, MANY_LABELS])
def test_a_model_that_agrees_with_its_teacher_has_nothing_to_learn(task):
    student = vit(0)
    labels = torch.zeros(3, dtype=torch.int64) if task is ONE_LABEL else torch.zeros(3, 10)
    settings = DistillSettings(logits=1.0, temperature=3.0, tokens=1.0)
    objective = DistilledObjective(student, task, FP32, 0.0, None, teacher(vit(0), tokens=True), settings)
    loss, _ = objective(torch.randn(3, 1, 8, 8), labels)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_no_weight_of_the_teacher_learns_or_belongs_to_the_objective():
    student, wise = vit(0), vit(1)
    objective = DistilledObjective(student, ONE_LABEL, FP32, 0.0, None, teacher(wise, tokens=True), DistillSettings())
    loss, _ = objective(torch.randn(3, 1, 8, 8), torch.arange(3))
    loss.backward()
    assert {id(p) for p in objective.parameters()} == {id(p) for p in student.parameters()}
    assert all(p.grad is None for p in wise.parameters()) and all(p.grad is not None for p in student.parameters())
    assert not wise.training


def test_the_teacher_sees_images_of_its_own_size_and_normalisation():
    seen = []
    wise = build_model("vit", **{**{k: v for k, v in VIT.items() if k not in ("name", "merge")}, "img_size": 16})
    wise.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    statistics = (0.2,), (0.5,), (0.4,), (0.25,)
    pixels = torch.full((1, 1, 8, 8), 0.9)
    teacher(wise, statistics=statistics)((pixels - 0.2) / 0.5)
    torch.testing.assert_close(seen[0], torch.full((1, 1, 16, 16), (0.9 - 0.4) / 0.25))
    same = teacher(vit(0), statistics=((0.2,), (0.3,)) * 2)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(same(images).logits, vit(0)(images)), "not to be rounded where nothing changes"


@pytest.mark.parametrize("library", ["timm", "torchvision", "ours", "hybrid"])
@pytest.mark.parametrize("r", [None, 0, 3])
def test_last_tokens_are_those_that_leave_the_last_block(library, r):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    ours = {**TIMM, "in_chans": 3, "merge": {"r": r or 0}}
    if library in ("ours", "hybrid"):
        model = build_model("vit" if library == "ours" else "hybrid", **ours).eval()
        encoder = model if library == "ours" else model.vit
        expected = unmerge(*run_without_norm(encoder, images))
    elif library == "timm":
        model = timm.models.VisionTransformer(**TIMM).eval()
        if r is not None:
            wrap(model, "tome", r=r)
        norm, model.norm = model.norm, nn.Identity()
        expected = model.forward_features(images)
        model.norm = norm
    else:
        from torchvision.models import VisionTransformer

        model = VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=5).eval()
        if r is not None:
            wrap(model, "tome", r=r)
        norm, model.encoder.ln = model.encoder.ln, nn.Identity()
        x = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(images)], dim=1)
        expected = model.encoder(x)
        model.encoder.ln = norm
    with last_tokens(model) as found:
        model(images)
    assert torch.equal(found[-1], expected) and expected.shape == (2, 17, 24)
    model(images)
    assert len(found) == 1 or library != "ours", "nothing is collected outside"


def test_a_merged_tokens_gradient_points_to_the_mean_of_its_members():
    """Three inputs of one token: pulling it towards each of them is pulling it towards their mean."""
    own = torch.randn(1, 1, 8, requires_grad=True)
    theirs = F.layer_norm(torch.randn(1, 3, 8), (8,))
    between_tokens(own.expand(1, 3, 8), theirs).backward()
    apart = own.grad.clone()
    own.grad = None
    (3 * (F.layer_norm(own, (8,)) - theirs.mean(1, keepdim=True)).square().sum() / 24).backward()
    torch.testing.assert_close(apart, own.grad)


# Runs


@pytest.mark.precision
@pytest.mark.parametrize("mode", mostly_slow([*MODES, None], ["full"]))
def test_crashed_and_resumed_equals_uninterrupted(mode, tuned, start, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    tokens = 0 if mode == "head" else 0.5
    train = {"teacher": start, "distill": {"logits": 0.7, "temperature": 2, "tokens": tokens}}
    settings = settings_of(train=train) if mode is None else tuned(mode, train=train)
    settings = settings.model_copy(update={"checkpoint": settings.checkpoint.model_copy(update={"every_steps": 4})})
    run_experiment(settings, whole)
    run_until(monkeypatch, 30, settings, parts)
    run_experiment(settings, parts, resume=True)
    assert_same_run(whole, parts)
    plain = tmp_path / "plain"
    plain.mkdir()
    run_experiment(settings_of() if mode is None else tuned(mode), plain)
    learnt = [load_run(folder, which="last").model.state_dict() for folder in (whole, plain)]
    assert any(not torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0]), "the teacher taught nothing"


@pytest.mark.precision
def test_itself_without_merging_teaches(tuned, start, folder, caplog):
    caplog.set_level(logging.INFO, "hybridmerge")
    logging.getLogger("hybridmerge").propagate = True
    run_experiment(tuned("full", train={"teacher": "self", "distill": {"tokens": 1}}), folder)
    assert "learns from train.teacher = self: 0.5 of the loss compares logits at temperature 1" in caplog.text
    state = load_run(start).model.state_dict()
    assert checkpoint.load(folder / "best.pt")["teacher"] == checkpoint.digest_of(state)


@pytest.mark.precision
def test_another_teacher_is_noticed_and_a_moved_one_is_not(start, tmp_path, monkeypatch, folder):
    moved = shutil.copytree(start, tmp_path / "moved")
    settings = settings_of(train={"teacher": start}, checkpoint={"every_steps": 4})
    run_until(monkeypatch, 10, settings, folder)
    state = checkpoint.load(moved / "best.pt")
    changed = {name: value + 0.1 for name, value in state["model"].items()}
    checkpoint.save(moved / "best.pt", {**state, "model": changed})
    there = settings_of(train={"teacher": str(moved)}, checkpoint={"every_steps": 4})
    with pytest.raises(
        UserError, match=r"train\.teacher = .*moved'?: its weights are not those that the run was started"
    ):
        run_experiment(there, folder, resume=True)
    checkpoint.save(moved / "best.pt", state)
    with pytest.raises(UserError, match=r"train\.teacher = null: the run was started with 'a run'"):
        run_experiment(settings_of(checkpoint={"every_steps": 4}), folder, resume=True)
    run_experiment(there, folder, resume=True)


def test_the_teacher_of_a_fold_is_the_same_fold_of_its_run(tmp_path, tiny, caplog):
    logging.getLogger("hybridmerge").propagate = True
    folds = {"folds": 2, "val": 0.1, "part": 0.1, "test": 0}
    taught = tiny(split=folds, train={"epochs": 1})
    run_folds(taught, tmp_path / "teacher", resume=False)
    student = tiny(split=folds, train={"epochs": 1, "teacher": str(tmp_path / "teacher")})
    run_folds(student, tmp_path / "student", resume=False)
    for fold in (0, 1):
        teachers = load_run(tmp_path / "teacher" / f"fold{fold}").model.state_dict()
        found = checkpoint.load(tmp_path / "student" / f"fold{fold}" / "best.pt")["teacher"]
        assert found == checkpoint.digest_of(teachers)
    assert "has seen images" not in caplog.text
    more = tiny(split={**folds, "folds": 3}, train={"epochs": 1, "teacher": str(tmp_path / "teacher")})
    with pytest.raises(UserError, match=r"teacher': has 2 folds, and split\.folds = 3; use as many"):
        run_folds(more, tmp_path / "more", resume=False)
    (tmp_path / "teacher" / "fold1" / "best.pt").unlink()
    with pytest.raises(UserError, match=r"teacher': its fold 1 is not trained; finish it with --resume"):
        run_folds(student, tmp_path / "again", resume=False)
    assert not (tmp_path / "again" / "fold0" / "best.pt").exists(), "said before the first fold is trained"


def test_a_teacher_that_saw_the_test_images_is_said(start, folder, caplog):
    logging.getLogger("hybridmerge").propagate = True
    run_experiment(settings_of(split={"test_seed": 5, "part": 0.1}, train={"teacher": start, "epochs": 1}), folder)
    assert "train.teacher: " in caplog.text and "has seen images that test this run" in caplog.text


@pytest.mark.parametrize("classes", [10, 7])
def test_a_model_of_a_hub_teaches_if_it_knows_the_classes(classes, folder, monkeypatch):
    """The hub's answer is made here; all else is as with the real one."""
    torch.manual_seed(0)
    weights = timm.create_model("test_vit", num_classes=classes).state_dict()
    monkeypatch.setitem(HUBS, "timm", lambda name: weights)
    settings = settings_of(split={"part": 0.05}, train={"teacher": "timm:test_vit.r160_in1k", "epochs": 1})
    if classes != 10:
        with pytest.raises(UserError, match="its classifier is not for the 10 classes of the data; train it on them"):
            run_experiment(settings, folder)
        assert not list(folder.iterdir())
        return
    run_experiment(settings, folder)
    assert checkpoint.load(folder / "best.pt")["teacher"] is not None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"teacher": "self"},
            r"train\.teacher = 'self': the model has random weights before training; give model\.weights",
        ),
        ({"teacher": "nowhere"}, r"train\.teacher = '.*nowhere': no run folder; train it first, or correct the path"),
    ],
)
def test_refused_before_anything_is_written(changed, says, folder):
    with pytest.raises(UserError, match=says):
        run_experiment(settings_of(train=changed), folder)
    assert not list(folder.iterdir())


def test_another_number_of_tokens_is_refused(start, folder):
    model = {**VIT, "patch_size": 4}
    with pytest.raises(
        UserError, match="this model has 5 tokens of width 16, the teacher 17 tokens of width 16; set it"
    ):
        run_experiment(settings_of(model=model, train={"teacher": start, "distill": {"tokens": 1}}), folder)
    assert not list(folder.iterdir())


def test_other_classes_are_refused(start, folder, tmp_path):
    state = checkpoint.load(Path(start) / "best.pt")
    other = shutil.copytree(start, tmp_path / "other")
    checkpoint.save(other / "best.pt", {**state, "classes": state["classes"][::-1]})
    with pytest.raises(UserError, match=r"train\.teacher = .*: was trained on other classes"):
        run_experiment(settings_of(train={"teacher": str(other)}), folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["train.distill.tokens=1"], r"train\.distill: there is no teacher; give train\.teacher, or omit it"),
        (["train.teacher=self", "train.distill.logits=0"], r"train\.distill\.logits = 0 beside tokens = 0"),
        (["train.teacher=self", "train.distill.temperature=0"], r"train\.distill\.temperature"),
        (
            ["train.teacher=self", "train.distill.tokens=1", "finetune.mode=head"],
            r"train\.distill\.tokens = 1: only the head learns \(finetune\.mode = 'head'\)",
        ),
    ],
)
def test_settings_that_teach_nothing_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        load_settings("digits/vit", given)


def test_the_path_of_a_teacher_is_absolute_and_names_stay():
    for name in ("self", "timm:deit_tiny_patch16_224.fb_in1k"):
        assert RunSettings.model_validate({**settings_of(train={"teacher": name}).model_dump()}).train.teacher == name
    assert settings_of(train={"teacher": "runs/x"}).train.teacher == str(Path("runs/x").absolute())


def test_an_objective_without_a_teacher_is_as_it_was():
    student, images, labels = vit(0), torch.randn(4, 1, 8, 8), torch.arange(4)
    loss, _ = Objective(student, ONE_LABEL, FP32)(images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(student(images), labels))
