"""Sharded models of every kind compute what whole ones do. In a group of one process, whose part is the whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn

from engine.launch.sharding import gathered, is_sharded, shard, whole
from models.lora import add_lora, merge_lora
from models.recomputing import recompute_blocks
from models.settings import UserError
from tests.models.merging.wrapped_models import torchvision_tiny
from tests.models.test_recomputing import made, step

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A group of this process alone."""
    file = tmp_path_factory.mktemp("group") / "group"
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["hybrid", "conformer", "timm:convnext_atto", "torchvision", "deit", "beit_shared"])
def test_a_step_is_the_same(name):
    model = made(name)
    parts = copy.deepcopy(model)
    recompute_blocks(parts)
    shard(parts, CPU, 1)
    assert is_sharded(parts) and not is_sharded(model)
    plain, split = step(model), step(parts)  # in bf16, where a convolution's rounding depends on how its weights lie
    assert plain.keys() == split.keys() and model.state_dict().keys() == parts.state_dict().keys()
    for key, value in plain.items():
        torch.testing.assert_close(whole(split[key]), value, atol=1e-3, rtol=1e-2, msg=key)
    images = torch.randn(2, 3, *[getattr(model, "img_size", 32)] * 2)
    with torch.inference_mode():
        assert torch.equal(parts.eval()(images), model.eval()(images))
    step(parts)  # what was gathered in inference mode does not remain


@pytest.mark.parametrize("name", ["deit", "torchvision, not wrapped"])
def test_adapters_are_added_to_weights_in_parts(name):
    model = torchvision_tiny() if "not" in name else made(name)
    model.in_chans, model.img_size, model.head_names = 3, 32, ("head",)
    add_lora(model, 2, 4.0, 0.0, None)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter)
    parts = copy.deepcopy(model)
    shard(parts, CPU, 1)
    plain, split = step(model), step(parts)
    for key, value in plain.items():
        torch.testing.assert_close(whole(split[key]), value, msg=key)
    assert merge_lora(parts) == merge_lora(model) > 0
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(parts.eval()(images), model.eval()(images))


def test_gathering():
    parts = nn.Linear(3, 2)
    given = {name: value.clone() for name, value in parts.state_dict().items()}
    shard(parts, CPU, 1)
    state = {"model": parts.state_dict(), "more": [1, (torch.ones(2), None)]}
    kept = gathered(state, keep=True)
    assert kept["more"] == state["more"] and type(kept["more"][1]) is tuple
    for name, value in kept["model"].items():
        assert type(value) is torch.Tensor and torch.equal(value, given[name])
    assert gathered(state, keep=False)["model"] == {"weight": None, "bias": None}


def test_a_single_number_is_refused():
    model = nn.Linear(3, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="train.parallel = 'fsdp': scale is a single number"):
        shard(model, CPU, 1)
