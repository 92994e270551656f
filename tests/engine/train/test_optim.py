"""Weight decay's groups, the learning rate by step, and the moving average."""

import math
from itertools import pairwise

import pytest
import torch

from engine.train.optim import EMA, build_optimizer, learning_rate, param_groups
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
    rates = [learning_rate(step, 110, 10, 1.0, 0.1, schedule) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[110] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.55)  # half way, for both
    assert all(a > b for a, b in pairwise(rates[10:]))
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2 if schedule == "cosine" else 0.1 + 0.9 * 0.75
    assert rates[35] == pytest.approx(quarter)


def test_no_warmup_starts_at_the_full_rate():
    assert learning_rate(0, 10, 0, 0.5, 0.0, "cosine") == 0.5


def test_ema_by_hand():
    model = torch.nn.BatchNorm1d(1)
    ema = EMA(model, decay=0.5)
    weight = 1.0
    for n, value in enumerate((3.0, 5.0, 9.0, 9.0)):
        torch.nn.init.constant_(model.weight, value)
        model.running_mean.fill_(value)
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        weight = decay * weight + (1 - decay) * value
        assert ema.shadow["weight"].item() == pytest.approx(weight)
        assert ema.shadow["running_mean"].item() == value  # a buffer is not averaged
    assert model.weight.item() == 9.0


def test_ema_comes_back_from_its_state():
    model = torch.nn.Linear(2, 2)
    ema = EMA(model, 0.9)
    torch.nn.init.ones_(model.weight)
    ema.update(model)
    other = EMA(torch.nn.Linear(2, 2), 0.9)
    other.load_state_dict(ema.state_dict())
    ema.update(model)
    other.update(model)
    assert torch.equal(ema.shadow["weight"], other.shadow["weight"])
