"""Files of mmpretrain, loaded into timm's model and ours: the logits that the library itself computed."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import UserError, build_model
from models.weights import load_weights
from tests.paths import ROOT

ARRAYS = np.load(ROOT / "tests" / "golden" / "mmpretrain.npz")
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 3}
AVERAGE = {"global_pool": "avg", "fc_norm": True, "init_values": 1.0, "pre_norm": True}
IMAGES = torch.from_numpy(ARRAYS["images"])


def saved(kind, folder, **changed):
    """A file as the library writes it, with settings and counters beside the weights."""
    names = [name for name in ARRAYS.files if name.startswith(f"{kind}/") and name != f"{kind}/logits"]
    state = {name.removeprefix(f"{kind}/"): torch.from_numpy(ARRAYS[name]) for name in names}
    file = folder / "epoch_100.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": {**state, **changed}}, file)
    return str(file), torch.from_numpy(ARRAYS[f"{kind}/logits"])


def timm_vit(**options):
    model = VisionTransformer(**SIZES, **options)
    model.head_names = ("head",)
    return model


@torch.no_grad()
@pytest.mark.parametrize("build", [lambda: build_model("vit", **SIZES), timm_vit], ids=["ours", "timm"])
def test_a_vit_with_a_class_token(build, tmp_path):
    file, expected = saved("class_token", tmp_path)
    model = build()
    report = load_weights(model, file)
    assert not report.missing and not report.replaced
    torch.testing.assert_close(model.eval()(IMAGES), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_vit_with_all_that_timm_has_too(tmp_path):
    file, expected = saved("average", tmp_path)
    model = timm_vit(**AVERAGE)
    load_weights(model, file)
    torch.testing.assert_close(model.eval()(IMAGES), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layer_scale_is_multiplied_into_our_vit(tmp_path):
    file, _ = saved("average", tmp_path)
    state = {name: value for name, value in torch.load(file)["state_dict"].items() if "pre_norm" not in name}
    state["backbone.patch_embed.projection.bias"] = torch.zeros(16)
    for kind in ("weight", "bias"):
        state[f"backbone.ln1.{kind}"] = state.pop(f"backbone.ln2.{kind}")
    torch.save({"state_dict": state}, file)
    theirs, ours = timm_vit(init_values=1.0), build_model("vit", **SIZES)
    load_weights(theirs, file)
    assert load_weights(ours, file).folded == 4
    torch.testing.assert_close(ours.eval()(IMAGES), theirs.eval()(IMAGES), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("build", [lambda: build_model("vit", **SIZES), timm_vit], ids=["ours", "timm"])
def test_a_head_with_a_hidden_layer_is_left_out(build, tmp_path):
    hidden = {"head.layers.pre_logits.weight": torch.zeros(16, 16), "head.layers.pre_logits.bias": torch.zeros(16)}
    file, _ = saved("class_token", tmp_path, **hidden)
    assert load_weights(build(), file).replaced == ["head.weight", "head.bias"]


@torch.no_grad()
@pytest.mark.parametrize("head", ["head.fc", "head.layers.head"])
def test_a_head_for_other_classes_is_left_out(head, tmp_path):
    file, _ = saved("class_token", tmp_path)
    state = torch.load(file)["state_dict"]
    for kind in ("weight", "bias"):
        state[f"{head}.{kind}"] = state.pop(f"head.layers.head.{kind}")
    torch.save({"state_dict": state}, file)
    model = build_model("vit", **{**SIZES, "num_classes": 7})
    report = load_weights(model, file)
    assert report.replaced and torch.equal(
        model.blocks[1].mlp.fc2.weight, state["backbone.layers.1.ffn.layers.1.weight"]
    )


def test_a_decoder_of_a_masked_autoencoder_stays_out(tmp_path):
    decoder = {"neck.decoder_embed.weight": torch.zeros(8, 16), "neck.mask_token": torch.zeros(1, 1, 8)}
    file, _ = saved("class_token", tmp_path, **decoder)
    model = build_model("vit", **SIZES)
    load_weights(model, file)
    assert model.blocks[0].norm1.weight.equal(torch.from_numpy(ARRAYS["class_token/backbone.layers.0.ln1.weight"]))


def test_what_the_model_lacks_is_refused(tmp_path):
    file, _ = saved("average", tmp_path)
    with pytest.raises(UserError, match=r"norm_pre|fc_norm|ls1"):
        load_weights(timm_vit(init_values=1.0), file)


def test_a_part_of_a_larger_model(tmp_path):
    """A detector names its ViT otherwise than a classifier."""
    file, _ = saved("class_token", tmp_path)
    state = torch.load(file)["state_dict"]
    torch.save({f"student.{name}": value for name, value in state.items()}, file)
    model = nn.ModuleDict({"vit": timm_vit()})["vit"]
    load_weights(model, file)
    assert model.blocks[1].norm2.bias.equal(state["backbone.layers.1.ln2.bias"])
