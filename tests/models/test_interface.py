"""What blocks remove and leave, asked of any model."""

import pytest
import torch

from models import MODELS, build_model
from models.interface import (
    ExemptFromWeightDecay,
    LayerGroups,
    MergingModel,
    NamedHeads,
    SettingsWithMerging,
    SeveralHeads,
    as_merging_model,
    merge_settings,
    merging_method,
    model_name,
    removed_per_block,
    tokens_per_block,
    trace_tokens,
)
from models.merging import wrap
from models.merging.wrapping import trace
from models.settings import check
from models.settings.zoo import split_name
from tests.models.merging.wrapped_models import built, images, prefix_of

OURS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "options"), [("vit", {}), ("hybrid", {}), ("conformer", {"base_channel": 8, "stem_stride": 1})]
)
def test_ours(name, options):
    model = build_model(name, **OURS, **options, merge={"method": "tome", "r": [3, 0, 20]})
    assert removed_per_block(model) == [3, 0, 6]  # the last: half of the 13 that are left
    assert tokens_per_block(model) == [14, 14, 8]
    _, tokens = model.forward_features(torch.zeros(1, 3, 32, 32))
    assert tokens.size.shape[1] == 8
    traced, grid = trace_tokens(model.eval(), torch.zeros(1, 3, 32, 32))
    assert grid == (4, 4) and traced.size.shape[1] == 8 and traced.index.shape == (1, 17)


@pytest.mark.parametrize("name", ["deit", "distilled", "registers", "average", "torchvision", "beit", "eva02"])
def test_wrapped(name):
    model = wrap(built(name), method="tome", r=[3, 0, 20])
    prefix = prefix_of(model)
    assert removed_per_block(model) == [3, 0, 6]
    assert tokens_per_block(model) == [prefix + 13, prefix + 13, prefix + 7]
    expected = trace(model.eval(), images())[1]
    assert expected.size.shape[1] == tokens_per_block(model)[-1]
    tokens, grid = trace_tokens(model, images())
    assert tokens.index.equal(expected.index) and prefix + grid[0] * grid[1] == tokens.index.shape[1]


@pytest.mark.parametrize("name", ["deit", "torchvision"])
def test_unwrapped(name):
    assert removed_per_block(built(name)) == tokens_per_block(built(name)) == []
    assert trace_tokens(built(name), images()) is None


@pytest.mark.parametrize("name", ["cnn", "lenet5", "timm:resnet18", "torchvision:squeezenet1_1"])
def test_convolutional(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=5)
    assert removed_per_block(model) == tokens_per_block(model) == []
    assert trace_tokens(model, torch.zeros(1)) is None


@pytest.mark.parametrize(
    ("name", "merge", "method"),
    [
        ("hybrid", {}, "tome"),
        ("vit", {"merge": {"method": "none"}}, "none"),
        ("lenet5", {}, None),
        ("timm:resnet18", {}, None),
        ("timm:vit_tiny_patch16_224", {"merge": {"method": "grid"}}, "grid"),
    ],
)
def test_names(name, merge, method):
    values = split_name({"name": name, **merge})
    settings = check(MODELS[values["name"]][0], values)
    assert model_name(settings) == name and merging_method(settings) == method


def test_a_wrapped_model_of_the_zoo():
    model = build_model(
        "timm:deit_tiny_distilled_patch16_224",
        num_classes=5,
        img_size=32,
        merge={"method": "tome", "r": 3},
        options={"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
    )
    assert removed_per_block(model) == [3, 3] and tokens_per_block(model) == [15, 12]


PROTOCOLS = {
    "vit": {MergingModel, NamedHeads, ExemptFromWeightDecay},
    "hybrid": {MergingModel, NamedHeads},  # its ViT exempts parameters
    "conformer": {MergingModel, NamedHeads, ExemptFromWeightDecay, SeveralHeads, LayerGroups},
    "cnn": {NamedHeads},
    "lenet5": {NamedHeads},
    "timm:resnet18": {LayerGroups, NamedHeads},  # `build_model` names the heads of other libraries' models
    "timm:vit_tiny_patch16_224": {ExemptFromWeightDecay, LayerGroups, NamedHeads},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_each_model_offers(name):
    with torch.device("meta"):
        model = build_model(name)
    every = (MergingModel, NamedHeads, ExemptFromWeightDecay, SeveralHeads, LayerGroups)
    assert {protocol for protocol in every if isinstance(model, protocol)} == PROTOCOLS[name]
    assert (as_merging_model(model) is model) == (MergingModel in PROTOCOLS[name])


@pytest.mark.parametrize(
    ("name", "has_section", "merges"),
    [
        ("vit", True, True),
        ("hybrid", True, True),
        ("conformer", True, True),
        ("timm:vit_tiny_patch16_224", True, False),
        ("torchvision:vit_b_16", True, False),
        ("lenet5", False, False),
    ],
)
def test_settings_with_merging(name, has_section, merges):
    values = split_name({"name": name})
    settings = check(MODELS[values["name"]][0], values)
    assert isinstance(settings, SettingsWithMerging) == has_section
    assert (merge_settings(settings) is not None) == merges


def test_a_wrapped_model_s_schedule_can_be_set():
    model = wrap(built("torchvision"), r=1)
    merging = as_merging_model(model)
    assert isinstance(merging, MergingModel) and merging.schedule == [1, 1, 1] and merging.grid == (4, 4)
    merging.schedule = [2, 0, 4]
    assert removed_per_block(model) == [2, 0, 4] and tokens_per_block(model) == [15, 15, 11]
    assert merging.trace(images()).size.shape[1] == 11
