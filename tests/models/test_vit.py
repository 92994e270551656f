"""The ViT: golden cases, timm's names and logits, and what merging must not change."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from models import build_model
from models.merging import MERGERS
from models.settings import UserError
from tests.paths import GOLDEN

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10}


def golden_weight(name: str, shape: tuple[int, ...], scale: float = 0.12) -> torch.Tensor:
    """The weights that the reference implementations were run with (golden/README.md)."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)
    norm_scale = len(shape) == 1 and name.endswith("weight")
    return torch.from_numpy(1 + 0.1 * drawn if norm_scale else np.float32(scale) * drawn)


def golden_vit(**merge) -> torch.nn.Module:
    model = build_model("vit", **SMALL, merge=merge).eval()
    model.load_state_dict({name: golden_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    return model


def images(seed: int, count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(count, 3, size, size).astype(np.float32))


@pytest.mark.parametrize(
    ("case", "seed", "merge"),
    [
        ("vit_r4", 1, {"r": 4}),
        ("vit_list", 2, {"r": [8, 0, 6, 4, 0, 2]}),
        ("vit_noprop", 3, {"r": 4, "prop_attn": False}),
    ],
)
@torch.no_grad()
def test_golden(case, seed, merge):
    reference = np.load(GOLDEN)
    model = golden_vit(**merge)
    x, tokens = model.forward_features(images(seed))
    np.testing.assert_allclose(model.forward_head(x), reference[f"{case}/logits"], atol=1e-4)
    np.testing.assert_array_equal(tokens.size, reference[f"{case}/size"])
    np.testing.assert_array_equal(tokens.index, reference[f"{case}/assignment"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch32_224"])
@torch.no_grad()
def test_timm_parity(name):
    theirs = timm.create_model(name, num_classes=7).eval()
    for parameter in theirs.parameters():  # timm starts biases at zero: draw them, so that each has to be in its place
        parameter.normal_(std=0.05)
    ours = build_model(
        "vit",
        patch_size=theirs.patch_embed.patch_size[0],
        embed_dim=theirs.embed_dim,
        num_heads=theirs.blocks[0].attn.num_heads,
        num_classes=7,
    ).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(0, 2, 224)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("r", [0, [0] * 6])
@pytest.mark.parametrize("method", ["tome", "none"])
@torch.no_grad()
def test_r0_is_the_plain_vit_to_the_bit(r, method):
    torch.manual_seed(0)
    merging = build_model("vit", **SMALL, merge={"method": method, "r": r}).eval()
    plain = build_model("vit", **SMALL).eval()
    plain.load_state_dict(merging.state_dict())
    assert torch.equal(merging(images(0)), plain(images(0)))


def test_none_switches_merging_off():
    assert build_model("vit", **SMALL, merge={"method": "none", "r": 8}).schedule == [0] * 6


@pytest.mark.parametrize("method", MERGERS)
@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone(method):
    model = golden_vit(method=method, r=6)
    x = images(5, 8)
    together, tokens = model.forward_features(x)
    for i in range(8):
        alone, own = model.forward_features(x[i : i + 1])
        assert torch.equal(own.index[0], tokens.index[i])
        torch.testing.assert_close(model.forward_head(alone)[0], model.forward_head(together)[i], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_through_merging():
    model = build_model("vit", **SMALL, merge={"method": "tome", "r": 8})
    model(images(0)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("attn.qkv.bias"), name


def test_the_effective_schedule_is_clamped_to_half_of_what_is_left():
    model = build_model("vit", **SMALL, merge={"method": "tome", "r": 1000})
    assert model.schedule == [32, 16, 8, 4, 2, 1]
    assert model.tokens_per_block() == [33, 17, 9, 5, 3, 2]
    x, tokens = model.forward_features(images(0))
    assert x.shape[1] == 2 and tokens.size.sum(1).tolist() == [65.0] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": {"method": "tome", "r": -1}}, ["merge.r", "-1"]),
        ({"merge": {"method": "tome", "r": [1, 2]}}, ["merge.r", "2 entries", "6 blocks"]),
        ({"merge": {"method": "tomee"}}, ["model.merge.method", "tomee", "tome"]),
        ({"num_heads": 7}, ["embed_dim", "64", "num_heads 7", "8"]),
        ({"img_size": 33}, ["img_size", "33", "patch_size 4", "32 or 36"]),
        ({"embed_dimm": 64}, ["model.embed_dimm", "embed_dim"]),
        ({"depth": 0}, ["model.depth", "0", "greater than 0"]),
        ({"drop_path_rate": 1.5}, ["model.drop_path_rate", "1.5", "less than 1"]),
        ({"depth": True}, ["model.depth", "True"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        build_model("vit", **{**SMALL, **options})
    line = str(error.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_an_unknown_model_names_the_known():
    with pytest.raises(UserError, match="hybrid"):
        build_model("hybird")


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"\(3, 40, 40\).*\(3, 32, 32\)"):
        build_model("vit", **SMALL)(images(0, 1, 40))


@torch.no_grad()
def test_under_autocast_tokens_are_matched_in_fp32():
    """The method sees the fp32 mean of the keys that attention used, and computes in fp32 what it makes of it."""
    model = golden_vit(r=4)
    keys, seen = [], []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, inputs, output: keys.append(output[2]))

        def spied(metric, r, context, assign=block.merge.merger.assign):
            seen.append(metric)
            assert not torch.is_autocast_enabled("cpu") and context.size.dtype == torch.float32
            return assign(metric, r, context)

        block.merge.merger = replace(block.merge.merger, assign=spied)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, tokens = model.forward_features(images(1))
    assert len(keys) == len(seen) == 6
    for key, metric in zip(keys, seen, strict=True):
        assert key.dtype == torch.bfloat16 and metric.dtype == torch.float32
        assert torch.equal(metric, key.float().mean(1)[:, 1:])
    assert x.isfinite().all() and tokens.size.sum(1).tolist() == [65.0] * 3


def test_a_list_of_another_length_is_an_error_even_when_merging_is_off():
    with pytest.raises(UserError, match="merge.r has 2 entries; the model has 6 blocks"):
        build_model("vit", **SMALL, merge={"method": "none", "r": [1, 2]})


def test_r_alone_switches_merging_on():
    assert build_model("vit", **SMALL, merge={"r": 4}).schedule == [4] * 6
