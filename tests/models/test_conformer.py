"""Conformer: the reference's logits, the official names, the published costs, and what merging must not change."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models import group_parameters
from torch.nn import functional as F

from engine.cost.macs import measure
from models import MODELS, build, build_model
from models.budget import solve
from models.conformer_blocks import ConvBlock, ConvTransBlock, Expand, Squeeze, mean_by_token, patches_alone
from models.formulas import formula_macs
from models.interface import merging_losses
from models.merging import MERGERS, Tokens, initial_tokens, unmerge
from models.merging.layer import MergeLayer
from models.merging.tokens import Soft
from models.settings import Settings, UserError, check
from models.vit import Block
from tests.paths import GOLDEN

GOLDEN_SIZE = {"img_size": 64, "channel_ratio": 1, "embed_dim": 96, "num_heads": 3, "num_classes": 10}
SMALL = {
    "img_size": 16,
    "patch_size": 4,
    "stem_stride": 1,
    "base_channel": 8,
    "channel_ratio": 1,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}
TI, S, S32, B = (
    {"patch_size": patch, "channel_ratio": ratio, "embed_dim": dim, "num_heads": heads}
    for patch, ratio, dim, heads in ((16, 1, 384, 6), (16, 4, 384, 6), (32, 4, 384, 6), (16, 6, 576, 9))
)


def settings_of(**options: object) -> Settings:
    return check(MODELS["conformer"][0], {"name": "conformer", **options}, "model")


def golden_weight(name: str, value: torch.Tensor) -> torch.Tensor:
    """The weights that the reference implementation was run with (golden/README.md)."""
    if not value.is_floating_point():
        return torch.zeros_like(value)
    drawn = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).randn(*value.shape).astype(np.float32))
    if name.endswith("running_var"):
        return 1 + 0.1 * drawn.abs()
    return 1 + 0.1 * drawn if value.ndim == 1 and name.endswith("weight") else 0.05 * drawn


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    model.load_state_dict({name: golden_weight(name, value) for name, value in model.state_dict().items()})
    return model.eval()


def images(count: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(count, 3, size, size).astype(np.float32))


# As published


@torch.no_grad()
def test_golden() -> None:
    reference = np.load(GOLDEN)
    model = drawn(build_model("conformer", **GOLDEN_SIZE))
    conv, trans = model.forward_heads(images(2, 64, seed=4))
    np.testing.assert_allclose(conv, reference["conformer_small/conv_logits"], atol=1e-4)
    np.testing.assert_allclose(trans, reference["conformer_small/trans_logits"], atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == int(reference["conformer_small/params"])
    assert torch.equal(model(images(2, 64, seed=4)), conv + trans)


def official_ti() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Conformer-Ti's checkpoint, from conformer.py of github.com/pengzhiliang/Conformer."""

    def norm(name: str, n: int, batch: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", *(("running_mean", "running_var") if batch else ())):
            yield f"{name}.{part}", (n,)
        if batch:
            yield f"{name}.num_batches_tracked", ()

    def affine(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def conv_block(name: str, chans: int, out: int, project: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        inner = out // 4
        for i, shape in enumerate(((inner, chans, 1, 1), (inner, inner, 3, 3), (out, inner, 1, 1)), start=1):
            yield f"{name}.conv{i}.weight", shape
            yield from norm(f"{name}.bn{i}", shape[0], True)
        if project:
            yield f"{name}.residual_conv.weight", (out, chans, 1, 1)
            yield from norm(f"{name}.residual_bn", out, True)

    def trans_block(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}.norm1", 384, False)
        yield from affine(f"{name}.attn.qkv", 1152, 384)
        yield from affine(f"{name}.attn.proj", 384, 384)
        yield from norm(f"{name}.norm2", 384, False)
        yield from affine(f"{name}.mlp.fc1", 1536, 384)
        yield from affine(f"{name}.mlp.fc2", 384, 1536)

    yield "cls_token", (1, 1, 384)
    yield from norm("trans_norm", 384, False)
    yield from affine("trans_cls_head", 1000, 384)
    yield from affine("conv_cls_head", 1000, 256)
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64, True)
    yield from conv_block("conv_1", 64, 64, True)
    yield from affine("trans_patch_conv", 384, 64, 4, 4)
    yield from trans_block("trans_1")
    widths = {i: 64 if i < 5 else 128 if i < 9 else 256 for i in range(1, 13)}
    for i in range(2, 13):
        name, width = f"conv_trans_{i}", widths[i]
        yield from conv_block(f"{name}.cnn_block", widths[i - 1], width, i in (5, 9))
        yield from conv_block(f"{name}.fusion_block", width, width, i == 12)
        yield from affine(f"{name}.squeeze_block.conv_project", 384, width // 4, 1, 1)
        yield from norm(f"{name}.squeeze_block.ln", 384, False)
        yield from affine(f"{name}.expand_block.conv_project", width // 4, 384, 1, 1)
        yield from norm(f"{name}.expand_block.bn", width // 4, True)
        yield from trans_block(f"{name}.trans_block")


def test_names_and_shapes_are_the_official_checkpoints() -> None:
    with torch.device("meta"):
        model = build_model("conformer", **TI)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == dict(official_ti())


def test_layers_for_learning_rates_are_the_steps_of_both_halves() -> None:
    model = build_model("conformer", **SMALL)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    order = sorted(set(layers.values()), key=float)
    depths = {name: order.index(layer) for name, layer in layers.items()}
    assert depths.keys() >= dict(model.named_parameters()).keys()
    wanted = {
        "cls_token": 0,
        "trans_patch_conv.bias": 0,
        "bn1.weight": 0,
        "conv_1.bn1.bias": 1,
        "trans_1.norm1.bias": 1,
        "conv_trans_2.cnn_block.bn1.bias": 2,
        "conv_trans_3.trans_block.norm1.bias": 3,
        "trans_norm.bias": 3,
        "conv_cls_head.bias": 4,
        "trans_cls_head.weight": 4,
    }
    assert {name: depths[name] for name in wanted} == wanted
    for head in model.head_names:
        assert model.get_submodule(head).out_features == 5


@pytest.mark.parametrize(
    ("options", "params", "gmacs", "norms"),
    [
        (TI, 23.52, 5.250, None),
        (S, 37.67, 10.651, 0.0518),
        pytest.param(B, 83.29, 23.403, None, marks=pytest.mark.slow),
        (S32, 38.85, 7.087, 0.0413),
    ],
)
def test_published_costs(options: dict, params: float, gmacs: float, norms: float | None) -> None:
    """Published GMACs are fvcore's, which include its estimate for norms and resizing.

    Ti and B are traced; S and S/32 are counted by the formula, which traces bear out to the last MAC, and their norms
    were traced once. The figure of S/32 is not published.
    """
    settings = settings_of(**options)
    with torch.device("meta"):
        model = build(settings)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=5e-3)
    macs = sum(formula_macs(settings).values())
    if norms is None:
        cost = measure(model.to_empty(device="cpu"), settings=settings)  # no weight is looked at
        assert cost.macs == macs and cost.tokens == [197] * 12
        norms = sum(cost.other.values()) / 1e9
    assert macs / 1e9 + norms == pytest.approx(gmacs, abs=6e-4)


# Merging


@pytest.mark.parametrize("merge", [{"r": 0}, {"method": "none", "r": 8}, {"method": "grid", "r": [0] * 3}])
@torch.no_grad()
def test_r0_is_the_plain_conformer_to_the_bit(merge: dict) -> None:
    model = drawn(build_model("conformer", **SMALL, merge=merge))
    assert torch.equal(model(images()), drawn(build_model("conformer", **SMALL))(images()))


@pytest.mark.parametrize("method", [*MERGERS, "topk, pruning"])
@torch.no_grad()
def test_every_method_merges_and_a_batch_gives_what_its_images_give_alone(method: str) -> None:
    method, *prune = method.split(", ")
    r = 12 if method == "pool" else 5  # 4 x 4 patches pool to 2 x 2
    merge = {"method": method, "r": r} | ({"prune": True} if prune else {})
    model = drawn(build_model("conformer", **SMALL, merge=merge))
    together, (x, tokens) = model(images()), model.forward_features(images())
    assert model.tokens_per_block()[-1] == x.shape[1] == tokens.size.shape[1] == 17 - sum(model.schedule)
    assert (sum(model.schedule) > 0) == (method != "none") and together.isfinite().all()
    for i in range(3):
        torch.testing.assert_close(model(images()[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", MERGERS)
def test_gradients_reach_every_parameter_from_both_heads(method: str) -> None:
    torch.manual_seed(0)
    r = {"pool": 12, "sinkhorn": 4}.get(method, 5)  # to a single query sinkhorn brings all patches, whatever it learns
    model = build_model("conformer", **SMALL, merge={"method": method, "r": r}).train()
    with merging_losses(model) as losses:
        conv, trans = model.forward_heads(images())
    target = torch.tensor([0, 1, 2])
    sum(losses, F.cross_entropy(conv, target) + F.cross_entropy(trans, target)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def conv_trans_block(grid: tuple[int, int]) -> ConvTransBlock:
    """One block whose convolution sees one place at a time, so that equal patches stay equal."""
    torch.manual_seed(1)
    merge = MergeLayer(MERGERS["none"], "keys", 1, 0.0, 8, 4)
    block = ConvTransBlock(
        ConvBlock(16, 16),
        ConvBlock(16, 16),
        Squeeze(4, 8, 2),
        Expand(8, 4, 2, grid),
        Block(8, 2, 2.0, merge, qkv_bias=True, drop_path=0.0, prop_attn=True),
    ).eval()
    kernel = block.cnn_block.conv2.weight
    kernel.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    return block


@torch.no_grad()
def test_merged_tokens_are_their_duplicates_in_both_directions() -> None:
    """Where a token's patches are equal, on the map too, one token of size n is n tokens."""
    grid = (2, 3)
    block = conv_trans_block(grid)
    index = torch.tensor([[0, 1, 1, 2, 3, 2, 2], [0, 3, 1, 2, 3, 3, 1]])
    size = torch.stack([row.bincount(minlength=4) for row in index]).float()
    few, tokens = torch.randn(2, 4, 8), Tokens(index, size)
    many = unmerge(few, tokens)
    cells = unmerge(torch.randn(2, 4, 16), tokens, prefix=1)
    map_ = cells.mT.unflatten(2, grid).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    x, short, after = block(map_, few, tokens, 0, 1)
    plain, long, _ = block(map_, many, initial_tokens(many, grid), 0, 1)
    torch.testing.assert_close(unmerge(short, after), long)
    torch.testing.assert_close(x, plain)


@torch.no_grad()
def test_prop_attn_is_honoured() -> None:
    on, off = (drawn(build_model("conformer", **SMALL, merge={"r": 5, "prop_attn": flag})) for flag in (True, False))
    assert not torch.allclose(on(images()), off(images()), atol=1e-4)


@torch.no_grad()
def test_the_way_down_is_each_tokens_mean_over_its_patches() -> None:
    index, x = torch.tensor([[0, 2, 1, 2, 2, 1]]), torch.randn(1, 5, 3)
    patches = patches_alone(Tokens(index, torch.tensor([[1.0, 2.0, 3.0]])), 1)
    wanted = torch.stack([x[0, [1, 4]].mean(0), x[0, [0, 2, 3]].mean(0)])
    torch.testing.assert_close(mean_by_token(x, patches)[0], wanted)
    share = F.one_hot(index, 3).float()
    soft = patches_alone(Tokens(index, share.sum(1), soft=Soft(share, 3)), 1)
    torch.testing.assert_close(mean_by_token(x, soft)[0], wanted)
    torch.testing.assert_close(unmerge(wanted[None], soft), unmerge(wanted[None], patches))


def test_a_soft_state_travels_through_both_halves_while_training() -> None:
    model = build_model("conformer", **SMALL, merge={"method": "dtem", "r": 4})
    _, tokens = model.train().forward_features(images())
    assert tokens.soft is not None and tokens.size.shape == (3, 17)
    torch.testing.assert_close(tokens.size.sum(1), torch.full((3,), 17.0))
    model(images()).square().sum().backward()
    assert model.conv_trans_2.trans_block.merge.head.weight.grad.abs().sum() > 0


def test_another_schedule_may_be_set_and_is_clamped() -> None:
    model = build_model("conformer", **SMALL)
    model.schedule = [1000, 0, 2]
    assert model.schedule == [8, 0, 2] and model.tokens_per_block() == [9, 9, 7]
    assert model.forward_features(images())[0].shape == (3, 7, 24)
    with pytest.raises(ValueError, match="schedule has 2 entries; the model has 3 blocks"):
        model.schedule = [1, 2]


def test_under_autocast_tokens_are_matched_in_fp32() -> None:
    model, seen = drawn(build_model("conformer", **SMALL, merge={"r": 4})), []

    def spied(metric, r, context, assign=model.merger.assign):
        seen.append(metric.dtype)
        return assign(metric, r, context)

    for block in (model.trans_1, model.conv_trans_2.trans_block, model.conv_trans_3.trans_block):
        block.merge.merger = replace(block.merge.merger, assign=spied)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        x, _ = model.forward_features(images())
    assert seen == [torch.float32] * 3 and x.isfinite().all()


# Costs


@pytest.mark.parametrize(
    ("method", "stem_stride", "depth"), [("none", 4, 3), ("tome", 2, 3), ("topk", 1, 3), ("grid", 1, 3), ("dtem", 1, 3)]
)
def test_both_counts_are_equal(method: str, stem_stride: int, depth: int) -> None:
    patch = stem_stride * (8 if method == "none" else 4)
    settings = settings_of(
        **SMALL
        | {
            "stem_stride": stem_stride,
            "patch_size": patch,
            "img_size": 3 * patch,
            "in_chans": 2,
            "depth": depth,
            "mlp_ratio": 1.7,
            "merge": {"method": method, "r": [3, 0, 1, 0, 0, 1][:depth]},
        }
    )
    cost = measure(build(settings), settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}


def test_a_budget_is_solved() -> None:
    options = TI | {"merge": {"method": "tome", "target_ratio": 1.3}}
    solved = solve(settings_of(**options))
    assert all(r > 0 for r in solved.merge.r) and solved.depth == len(solved.merge.r)
    with pytest.raises(UserError, match=r"target_ratio = 50.*out of reach"):
        solve(settings_of(**TI | {"merge": {"target_ratio": 50}}))


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": 18}, ["model.img_size = 18", "patch_size 4", "16 or 20"]),
        ({"stem_stride": 4}, ["model.patch_size = 4", "4 x stem_stride (16)", "use 16"]),
        ({"stem_stride": 3}, ["model.stem_stride = 3", "1, 2, 4"]),
        ({"depth": 7}, ["model.depth = 7", "multiple of 3", "6 or 9"]),
        ({"base_channel": 6}, ["model.base_channel = 6", "multiple of 4", "4 or 8"]),
        ({"num_heads": 5}, ["embed_dim = 24", "num_heads 5"]),
        ({"merge": {"r": [1, 2]}}, ["merge.r has 2 entries", "3 blocks"]),
    ],
)
def test_mistakes_are_said_in_one_line(options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build_model("conformer", **SMALL | options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_image_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 20, 20\).*\(3, 16, 16\)"):
        build_model("conformer", **SMALL)(images(1, 20))
