"""Blocks that are computed again in the backward pass: the same gradients, draws, merging and statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.builders import build
from models.merging import wrap
from models.recomputing import recompute_blocks
from models.registry import MODELS
from models.repeated import repeated
from models.settings import UserError, check
from tests.models.merging.wrapped_models import built

SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 3, "embed_dim": 16, "num_heads": 2}
OURS = {
    "vit": {"depth": 3, "drop_path_rate": 0.5, "merge": {"method": "random", "r": {"train": [0, 4]}}},
    "hybrid": {"depth": 2, "stem": "conv", "cnn": {"block": "residual", "depth": 2}, "merge": {"r": 4}},
    "conformer": {"base_channel": 8, "stem_stride": 1, "depth": 3, "merge": {"method": "dtem", "r": 2}},
    "timm:convnext_atto": {"img_size": 32, "options": {"depths": [2, 2, 1, 1], "dims": [8, 8, 8, 8]}},
    "torchvision:resnet18": {"img_size": 32},
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name not in OURS:
        return wrap(built(name), method="tome", r=[0, 4, 4])
    given = OURS[name] if ":" in name else {**SMALL, **OURS[name]}
    library, _, arch = name.partition(":")
    tree = {"name": library, **({"arch": arch} if arch else {}), "num_classes": 3, **given}
    return build(check(MODELS[library][0], tree))


def step(model: nn.Module, **options) -> dict[str, torch.Tensor]:
    """Gradients and buffers after one step in bf16, with stochastic depth."""
    model.train().zero_grad(set_to_none=True)
    size = getattr(model, "img_size", 32)
    torch.manual_seed(1)
    images = torch.randn(4, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, **options).float().square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {f"buffer {name}": value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("name", [*OURS, "deit", "beit_both"])
def test_a_step_is_the_same(name):
    model = made(name)
    again = copy.deepcopy(model)
    recompute_blocks(again)
    assert again.state_dict().keys() == model.state_dict().keys()
    ran: dict[nn.Module, int] = {}
    for block in repeated(again):
        inside = next(part for part in block.modules() if isinstance(part, nn.LayerNorm | nn.BatchNorm2d))
        inside.register_forward_hook(lambda part, *_: ran.update({part: ran.get(part, 0) + 1}))
    options = {"schedule": [1, 3, 2]} if name == "vit" else {}
    plain, recomputed_ = step(model, **options), step(again, **options)
    assert ran and set(ran.values()) == {2}  # forward, and for the backward pass
    assert plain.keys() == recomputed_.keys()
    for key, value in plain.items():
        assert torch.equal(value, recomputed_[key]), key


def test_what_is_kept_between_the_passes():
    """Of each block its input alone."""

    def kept(model: nn.Module) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(torch.randn(4, 3, 32, 32)).sum()
        return sum(sizes)

    model = made("deit")
    everything = kept(model)
    recompute_blocks(model)
    assert kept(model) < everything / 3


def test_blocks():
    for name, inside, count in (("hybrid", "Block", 2), ("conformer", "ConvTransBlock", 2), ("deit", "Block", 3)):
        assert [type(block).__name__ for block in repeated(made(name))].count(inside) == count
    kinds = [type(block).__name__ for block in repeated(made("timm:convnext_atto"))]
    assert kinds == ["ConvNeXtBlock"] * 4 + ["ConvNeXtStage"] * 2  # a stage that holds one block is a block
    assert repeated(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    with pytest.raises(UserError, match="train.checkpoint_activations = true: Sequential has no blocks that repeat"):
        recompute_blocks(nn.Sequential(nn.Linear(2, 2)))
