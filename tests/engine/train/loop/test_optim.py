"""Weight decay's groups, the learning rate by step, and the moving average."""

import math
from itertools import pairwise

import pytest
import torch

from engine.train.loop.optim import LearningRate, MovingAverage, build_optimizer, param_groups
from models import build_model

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


@pytest.mark.parametrize("block", ["convnext", "residual"])
def test_norms_biases_scales_and_tokens_do_not_decay(block):
    model = build_model("hybrid", **SMALL, cnn={"block": block})
    decay, rest = param_groups(model, 0.05)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in rest["params"]}
    for name in names.values():
        norm = any(part.startswith(("norm", "bn")) for part in name.split("."))
        token = name.endswith(("cls_token", "pos_embed", "gamma", "size_embed.weight"))
        batch_norm = ".convs." in name and dict(model.named_parameters())[name].ndim == 1
        assert (name in spared) == (norm or token or batch_norm or name.endswith("bias")), name
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    model = build_model("vit", **SMALL)
    model.blocks.requires_grad_(False)
    given = sum(len(group["params"]) for group in param_groups(model, 0.1))
    assert given == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))


def test_sgd_has_momentum_and_adamw_betas():
    model = build_model("vit", **SMALL)
    assert build_optimizer(model, "sgd", 0.1, 0.0, 0.8, (0.9, 0.99)).defaults["momentum"] == 0.8
    assert build_optimizer(model, "adamw", 0.1, 0.0, 0.8, (0.9, 0.99)).defaults["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate(schedule):
    rate = LearningRate(1.0, total_steps=110, warmup_steps=10, min_lr=0.1, shape=schedule)
    rates = [rate.at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[110] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.55)  # half way, for both
    assert all(a > b for a, b in pairwise(rates[10:]))
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2 if schedule == "cosine" else 0.1 + 0.9 * 0.75
    assert rates[35] == pytest.approx(quarter)


def test_no_warmup_starts_at_the_full_rate():
    assert LearningRate(0.5, total_steps=10).at(0) == 0.5


def test_ema_by_hand():
    model = torch.nn.BatchNorm1d(1)
    average = MovingAverage(model, decay=0.5)
    weight = 1.0
    for n, value in enumerate((3.0, 5.0, 9.0, 9.0)):
        torch.nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        weight = decay * weight + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(weight)
        assert average.module.running_mean.item() == value  # a buffer is not averaged
    assert model.weight.item() == 9.0


def test_ema_comes_back_from_its_state():
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    torch.nn.init.ones_(model.weight)
    average.update_parameters(model)
    other = MovingAverage(torch.nn.Linear(2, 2), 0.9)
    other.restore(average.saved_state())
    assert other.updates == 1
    average.update_parameters(model)
    other.update_parameters(model)
    assert torch.equal(average.module.weight, other.module.weight)


def test_the_average_is_that_of_older_checkpoints():
    """Bit for bit: what runs before torch's AveragedModel computed, from their state on."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    average, names = MovingAverage(model, 0.97), dict(model.named_parameters())
    shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for n in range(60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            model[1].running_mean += 1
        average.update_parameters(model)
        decay = min(0.97, (1 + n) / (10 + n))
        for name, value in model.state_dict().items():
            shadow[name] = shadow[name].lerp(value, 1 - decay) if name in names else value.clone()
    state = average.saved_state()
    assert state["updates"] == 60 and state["shadow"].keys() == shadow.keys()
    assert all(torch.equal(value, state["shadow"][name]) for name, value in shadow.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hybrid", SMALL),
        (
            "timm:vit_tiny_patch16_224",
            {"img_size": 32, "num_classes": 10, "options": {"patch_size": 8, "depth": 2, "embed_dim": 48}},
        ),
    ],
)
def test_the_average_of_a_model_that_merges_is_a_model_of_its_own(name, options):
    """Merging in another library's blocks included: the copy runs its own blocks, not the model's."""
    model = build_model(name, **options, merge={"method": "tome", "r": 3}).eval()
    images = torch.randn(2, model.in_chans, 32, 32)
    average = MovingAverage(model, 0.9)
    with torch.inference_mode():
        before = model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    with torch.inference_mode():
        assert torch.equal(average.module.eval()(images), before) and not torch.equal(model(images), before)
