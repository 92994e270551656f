"""Counts against published figures, against hand computation, and against each other; and what must be refused.

GMACs of whole models are those of attention, linear layers and convolutions, norms left out.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn

from engine.cost import macs as complexity
from engine.cost import ops
from engine.cost.macs import CountError, NotCounted, check_agreement, measure, measure_or_say
from models import MODELS
from models.formulas import formula_macs
from models.merging import MERGERS
from models.settings import Settings, check
from tests.marks import mostly_slow

IMAGE = (3, 224, 224)
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
MERGE_1 = {"method": "tome", "r": 1}


def build(name: str, **options: object) -> tuple[nn.Module, Settings]:
    settings_class, make = MODELS[name]
    settings = check(settings_class, {"name": name, **options})
    return make(settings), settings


# Whole models


@pytest.mark.parametrize(
    ("name", "gmacs", "params"),
    [
        pytest.param("vit_base_patch16_224", 17.564, 86_567_656, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", 1.254, 5_717_416),
        pytest.param("beit_base_patch16_224", 17.564, None, marks=pytest.mark.slow),
        ("swin_tiny_patch4_window7_224", 4.491, 28_288_354),
        ("resnet18", 1.814, 11_689_512),
        ("convnext_tiny", 4.456, 28_589_128),
    ],
)
def test_published_models(name: str, gmacs: float, params: int | None) -> None:
    cost = measure(timm.create_model(name), IMAGE)
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)
    assert params is None or cost.params == params
    assert cost.formula is None and cost.tokens == []


def test_explicit_attention_counts_like_fused() -> None:
    model = timm.create_model("vit_tiny_patch16_224")
    for block in model.blocks:
        block.attn.fused_attn = False
    cost = measure(model, IMAGE)
    assert cost.macs / 1e9 == pytest.approx(1.254, abs=6e-4)
    assert cost.by_kind["attention"] == 0
    assert cost.by_kind["product"] == 12 * 2 * 197**2 * 192


def test_fast_path_hides_nothing_and_is_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    cost = measure(torchvision.models.VisionTransformer(224, 16, 12, 3, 192, 768), IMAGE)  # ViT-Ti/16
    assert cost.macs / 1e9 == pytest.approx(1.254, abs=6e-4)
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    ("r", "gmacs", "left"), [pytest.param(0, 17.564, 197, marks=pytest.mark.slow), (13, 10.37, 41)]
)
def test_our_vit_b16(r: int, gmacs: float, left: int) -> None:
    model, settings = build("vit", merge={"method": "tome", "r": r})
    cost = measure(model, settings=settings)
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)
    assert cost.macs == cost.formula_macs
    assert cost.tokens == [197 - r * (i + 1) for i in range(12)] and cost.tokens[-1] == left


def test_norms_stand_apart() -> None:
    cost = measure(timm.create_model("vit_tiny_patch16_224"), IMAGE)
    assert cost.other == {"layer_norm": 25 * 197 * 192 * 5}  # fvcore's guess of 5 for each element
    assert cost.macs == sum(cost.by_kind.values())
    assert cost.by_kind["linear"] == 12 * 197 * 12 * 192**2 + 192 * 1000
    assert cost.ignored["aten::gelu"] == 12


# By hand: 2 x 2 patches and a class token, 5 tokens of width 8; one patch goes between attention and MLP


def test_small_vit_by_hand() -> None:
    model, settings = build("vit", **SMALL, merge=MERGE_1)
    expected = {
        "convolution": 8 * 8 * 1 * 8,
        "linear": 5 * 8 * 24 + 5 * 8 * 8 + 4 * 8 * 32 + 4 * 32 * 8 + 8 * 3,
        "attention": 2 * (5 * 5 * 4) * 2,  # 2 heads of 4 channels, two products
        "product": 2 * 2 * 4,  # 2 sources, 2 destinations, one head's channels
    }
    cost = measure(model, settings=settings)
    assert cost.by_kind == expected
    assert formula_macs(settings) == expected
    assert cost.tokens == [4]


def test_activations_by_hand() -> None:
    model, _ = build("vit", **SMALL, merge=MERGE_1)
    patches, qkv, attended, projected, scores = 4 * 8, 5 * 24, 5 * 8, 5 * 8, 2 * 2
    assert measure(model).activations == patches + qkv + attended + projected + scores + 4 * 32 + 4 * 8 + 3


@pytest.mark.parametrize(
    ("stem", "cnn", "convolution", "linear"),
    [
        # 3x3: 1 -> 8 at 8 px, 8 -> 8 at 4 px, 8 -> 8 at 2 px; 1x1; skip 8 -> 6; two blocks of two 3x3 on 2 x 2 cells
        (
            "conv",
            {"block": "residual", "depth": 2, "dim": 6},
            9 * 8 * 64 + 9 * 64 * 16 + 9 * 64 * 4 + 64 * 4 + 8 * 6 * 4 + 2 * 2 * 9 * 36 * 4,
            4 * 8 * 6 + 4 * 6 + 6 * 3,
        ),
        (
            "patch",
            {"block": "convnext", "depth": 1},
            8 * 8 * 8 + 8 * 8 * 4 + (49 * 8 + 2 * 4 * 64) * 4,
            4 * 8 * 8 + 4 * 8 + 8 * 3,
        ),
        ("patch", None, 8 * 8 * 8, 0),
    ],
)
def test_small_hybrid_by_hand(stem: str, cnn: dict | None, convolution: int, linear: int) -> None:
    model, settings = build("hybrid", **SMALL, merge=MERGE_1, stem=stem, cnn=cnn)
    encoder = 5 * 8 * 24 + 5 * 8 * 8 + 4 * 8 * 32 + 4 * 32 * 8 + 8 * 3
    expected = {"convolution": convolution, "linear": encoder + linear, "attention": 400, "product": 16}
    assert measure(model, settings=settings).by_kind == expected
    assert formula_macs(settings) == expected


# The two counts


def random_options(name: str, seed: int) -> dict:
    """Options drawn at random; every choice that has MACs of its own is among them."""
    draw = random.Random(f"{name}{seed}")
    method = draw.choice(list(MERGERS))
    heads, patch, grid, depth = draw.choice([1, 2, 3]), draw.choice([2, 4, 8]), draw.choice([2, 3, 4, 6]), seed % 3 + 1
    options = {
        "img_size": patch * grid,
        "patch_size": patch,
        "in_chans": draw.choice([1, 3]),
        "num_heads": heads,
        "embed_dim": 4 * heads * draw.randint(1, 5),
        "depth": depth,
        "mlp_ratio": draw.choice([0.5, 1.7, 4.0]),
        "num_classes": draw.randint(1, 20),
        "qkv_bias": draw.random() < 0.5,
        "merge": {
            "method": method,
            "prop_attn": draw.random() < 0.5 or MERGERS[method].soft is not None,
            "r": draw.choice([draw.randint(0, 40), [draw.randint(0, 9) for _ in range(depth)]]),
        },
    }
    if name == "hybrid":
        blocks = {"block": draw.choice(["convnext", "residual"]), "depth": draw.randint(1, 3)}
        stride = draw.choice([n for n in (1, 2, 3) if grid % n == 0])
        options["stem"] = draw.choice(["conv", "patch"])
        options["bridge"] = {"stride": stride, "skip": draw.random() < 0.5}
        options["cnn"] = draw.choice([None, blocks, blocks | {"dim": draw.randint(1, 12)}])
    return options


@pytest.mark.parametrize("seed", mostly_slow(range(15), range(8)))
@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_both_counts_are_equal(name: str, seed: int) -> None:
    model, settings = build(name, **random_options(name, seed))
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in ops.KINDS}


METHODS = [*MERGERS, "topk, pruning"]
KEYS, TOKENS = [(method, None) for method in METHODS], [(method, "tokens") for method in METHODS]


@pytest.mark.parametrize(
    ("method", "metric"),
    mostly_slow(KEYS + TOKENS, [*KEYS, ("tome", "tokens"), ("mctf", "tokens"), ("grid", "tokens")]),
)
def test_each_method_costs_what_its_formula_says(method: str, metric: str | None) -> None:
    method, *prune = method.split(", ")
    if metric and MERGERS[method].soft:
        return  # it has a metric of its own
    merge = {"method": method, "r": [3, 30], "metric": metric} | ({"prune": True} if prune else {})
    model, settings = build("vit", **SMALL | {"img_size": 20, "depth": 2, "embed_dim": 12}, merge=merge)
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in ops.KINDS}


def test_merging_nothing_costs_nothing() -> None:
    costs = []
    for merge in ({"method": "none", "r": 3}, {"method": "tome", "r": 0}):
        model, settings = build("vit", **SMALL, merge=merge)
        costs.append(measure(model, settings=settings))
    assert costs[0] == costs[1]


@pytest.mark.parametrize("kind", ["convolution", "linear", "attention", "product"])
def test_formula_wrong_by_one_percent_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = build("vit", img_size=64, embed_dim=32, depth=2, num_heads=2, patch_size=8, merge=MERGE_1)
    right = formula_macs(settings)
    wrong = right | {kind: round(right[kind] * 1.01)}
    monkeypatch.setattr(complexity, "formula_macs", lambda _: wrong)
    with pytest.raises(CountError) as error:
        measure(model, settings=settings)
    for said in (sum(right.values()), sum(wrong.values()), right[kind], wrong[kind]):
        assert f"{said / 1e9:.6g}" in str(error.value)
    assert f"differ most in {kind}" in str(error.value)


def test_agreement_within_half_a_percent() -> None:
    counted = {"linear": 100_000, "product": 1_000}
    check_agreement(counted, {"linear": 100_400, "product": 1_000})
    for wrong in ({"linear": 100_600, "product": 1_000}, {"linear": 100_000}, {"linear": 100_000, "product": 980}):
        with pytest.raises(CountError):
            check_agreement(counted, wrong)


def test_tokens_that_the_formula_does_not_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = build("vit", **SMALL, merge=MERGE_1)
    monkeypatch.setattr(model, "tokens_per_block", lambda: [5])
    with pytest.raises(CountError, match=r"\[5\] tokens left, the formula \[4\]"):
        measure(model, settings=settings)


def test_method_without_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MERGERS, "tome", replace(MERGERS["tome"], macs=None))
    _, settings = build("vit", **SMALL, merge=MERGE_1)
    with pytest.raises(CountError, match=r"'tome': give its entry in MERGERS .* `macs`"):
        formula_macs(settings)


# What cannot be counted


class Recurrent(nn.Module):
    img_size, in_chans = 6, 1

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 6), nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(images[:, 0])[0][:, 0])


class Untraceable(Recurrent):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise LookupError("first line\nsecond line")


def test_what_cannot_be_counted_is_said_and_never_zero() -> None:
    for model, reason in (
        (Recurrent(), "aten::lstm (1 times)"),
        (Untraceable(), "fvcore cannot trace it (first line)"),
    ):
        cost = measure_or_say(model)
        assert cost.not_counted == reason and cost.params == 2 * 24 * 6 + 2 * 24 + 14
        assert cost.macs is cost.gmacs is cost.activations is cost.formula_macs is None and not cost.by_module
    with pytest.raises(NotCounted, match="aten::lstm"):
        measure(Recurrent())


def test_our_own_models_are_counted_or_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = build("vit", **SMALL)
    monkeypatch.setattr(complexity, "uncounted", lambda ops: ["aten::add"])
    with pytest.raises(CountError, match="aten::add"):
        measure_or_say(model, settings)


def test_memory_that_runs_out_is_no_matter_of_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Recurrent, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        measure_or_say(Recurrent())


# The model is left as it was


class Repeat(nn.Module):
    """A model on a batch of copies of the image."""

    def __init__(self, model: nn.Module, copies: int) -> None:
        super().__init__()
        self.model, self.copies = model, copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.expand(self.copies, -1, -1, -1))


def test_counts_grow_with_the_batch() -> None:
    model, _ = build("hybrid", **SMALL, merge=MERGE_1)
    one, three = measure(model), measure(Repeat(model, 3), (1, 8, 8))
    assert three.by_kind == {kind: 3 * n for kind, n in one.by_kind.items()}
    assert three.activations == 3 * one.activations and three.params == one.params


def test_module_called_twice_costs_twice() -> None:
    shared = nn.Linear(6, 6, bias=False)
    cost = measure(nn.Sequential(shared, nn.GELU(), shared), (1, 4, 6))
    assert cost.macs == cost.by_module[""] == cost.by_module["0"] == 2 * 4 * 6 * 6
    assert cost.params == 36


def test_modules_add_up() -> None:
    model, _ = build("hybrid", **SMALL, merge=MERGE_1)
    cost = measure(model)
    assert cost.by_module[""] == cost.macs
    assert cost.by_module["vit.blocks.0.attn"] == 4 * 5 * 8 * 8 + 400
    assert sum(cost.by_module[name] for name, _ in model.named_children()) == cost.macs


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 9, 8)])  # the second is refused by the forward
def test_model_and_random_state_are_left_alone(size: tuple[int, int, int]) -> None:
    model, _ = build("hybrid", **SMALL, drop_path_rate=0.1, merge=MERGE_1)
    model.train()
    model.conv_head.eval()
    kept = []
    model.register_forward_hook(lambda *_: kept.append(1))
    modes = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            measure(model, size)
        except ValueError:
            assert size == (1, 9, 8)
        assert torch.is_autocast_enabled("cpu")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()][:2] == [1, 0]
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_nothing_is_printed(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture, caplog) -> None:
    model, _ = build("vit", **SMALL, merge=MERGE_1)
    recwarn.clear()
    measure(model)
    assert not recwarn.list and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_half_precision_counts_the_same() -> None:
    model, settings = build("vit", **SMALL, merge=MERGE_1)
    assert measure(model.to(torch.bfloat16), settings=settings).by_kind == formula_macs(settings)
