"""Fine-tuning: what learns, when, how fast; layers by depth; LoRA in and out again."""

from itertools import pairwise

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn import functional as F

from engine.checkpoint import digest_of
from engine.config import load_settings
from engine.optim import build_optimizer
from models import build_model
from models.finetune import FinetuneSettings, Tuning, frozen_state, layer_depths, parameters_of, partial_state
from models.lora import add_lora, lora_targets, merge_lora
from models.merging import wrap
from models.settings import UserError, check
from tests.models.wrapped_models import built

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
RESNET = {"img_size": 32, "num_classes": 5, "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
RESNEXT = {**RESNET, "options": {**RESNET["options"], "cardinality": 2, "base_width": 64}}
VIT = {"img_size": 32, "num_classes": 5, "options": SMALL}
MODELS = {
    "vit": lambda **o: build_model("vit", **TINY, **o),
    "hybrid": lambda **o: build_model("hybrid", **TINY, **o),
    "conformer": lambda **o: build_model("conformer", **TINY, base_channel=8, stem_stride=1, **o),
    "resnet": lambda **o: build_model("timm:resnet18", **{**RESNET, **o}),
    "resnext": lambda **o: build_model("timm:resnext50_32x4d", **{**RESNEXT, **o}),
    "timm": lambda **o: build_model("timm:vit_tiny_patch16_224", **{**VIT, **o}),
    "distilled": lambda **o: build_model("timm:deit_tiny_distilled_patch16_224", **{**VIT, **o}),
    "torchvision": lambda **o: zoo_like(built("torchvision"), ("heads.head",), **o),
    "beit": lambda **o: zoo_like(built("beit"), ("head",), **o),
}


def zoo_like(model, heads, merge=None):
    """A model that is too small to have a name in its library."""
    model.img_size, model.in_chans, model.num_classes, model.head_names = 32, 3, 5, heads
    return model if merge is None else wrap(model, **merge)


def model_of(name, **options):
    """A model without a zero anywhere: heads that start at zero would hide mistakes."""
    torch.manual_seed(0)
    model = MODELS[name](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def settings(mode, **options):
    return check(FinetuneSettings, {"mode": mode, **options}, where="finetune")


def gradual(*groups):
    return settings("gradual", groups=[dict(zip(("parts", "epoch", "lr"), group, strict=True)) for group in groups])


def optimizer_of(model, tuning, lr=1e-2):
    return build_optimizer(model, "adamw", lr, 0.05, 0.9, (0.9, 0.999), tuning.scales)


def steps(model, optimizer, count=2):
    x, y = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return x


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "head", "rank": 4}, "finetune.rank = 4: head has no such option, lora has"),
        ({"mode": "full", "cache": "disk"}, "finetune.cache = 'disk': full has no such option, head has"),
        ({"mode": "lora", "layer_decay": 0.5}, "finetune.layer_decay = 0.5: lora has no such option, full has"),
        ({"mode": "lora", "groups": [{"parts": ["head"], "lr": 0.1}]}, "finetune.groups: lora has no such option"),
        ({"mode": "gradual"}, "finetune.groups: missing"),
        ({"mode": "gradual", "groups": []}, "finetune.groups: missing"),
        ({"mode": "gradual", "groups": [{"parts": ["head"], "epoch": 1, "lr": 0.1}]}, "nothing learns at first"),
        ({"mode": "gradual", "groups": [{"parts": ["head"], "epch": 1, "lr": 0.1}]}, "groups.0.epch: unknown key"),
        ({"mode": "gradual", "groups": [{"parts": [], "lr": 0.1}]}, "finetune.groups.0.parts = []"),
        ({"mode": "hed"}, "finetune.mode = 'hed': did you mean head?"),
        ({"rank": 4}, "finetune.mode: missing"),
        ({"mode": "lora", "rank": 0}, "finetune.rank = 0: must be at least 1"),
        ({"mode": "lora", "targets": []}, "finetune.targets = []"),
        ({"mode": "full", "layer_decay": 1.5}, "finetune.layer_decay = 1.5: must be greater than 0 and at most 1"),
    ],
)
def test_mistakes_are_said_in_one_line(options, words, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\nmodel: {{name: lenet5}}\ndata: {{name: digits}}\nfinetune: {options!r}\n")
    with pytest.raises(UserError) as error:
        load_settings(str(file))
    assert words in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("finetune")


# The head alone


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("vit", ["head"]), ("hybrid", ["vit.head", "conv_head.fc"]), ("resnet", ["fc"]), ("timm", ["head"]),
        ("conformer", ["conv_cls_head", "trans_cls_head"]), ("distilled", ["head", "head_dist"]),
        ("torchvision", ["heads.head"]),
    ],
)  # fmt: skip
def test_head_alone_moves_nothing_else(name, heads):
    model = model_of(name)
    wanted = {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    tuning = Tuning(model, settings("head"), 1e-2)
    assert set(tuning.learns_from) == set(tuning.scales) == tuning.saved_names() == wanted
    assert set(parameters_of(model, ["head"], "parts")) == wanted
    before = copied(model)
    steps(model, optimizer_of(model, tuning))
    assert moved(model, before) == wanted  # BatchNorm's statistics included: `moved` looks at buffers too
    count, total = sum(before[name].numel() for name in wanted), sum(p.numel() for p in model.parameters())
    assert tuning.trained() == count
    assert tuning.describe(0).startswith(f"learning: {count:,} of {total:,} parameters ({100 * count / total:.2f} %)")
    assert tuning.describe(1) == ""


def test_what_is_frozen_is_in_evaluation_mode_and_what_learns_is_not():
    model = model_of("timm", options={**SMALL, "pos_drop_rate": 0.5, "drop_rate": 0.5, "proj_drop_rate": 0.5})
    Tuning(model, settings("head"), 1e-2)
    assert not any(module.training for module in [model.pos_drop, *model.blocks.modules()])
    assert model.head.training and model.head_drop.training
    Tuning(model, gradual((["head"], 0, 0.1), (["blocks.1", "norm"], 1, 0.1)), 1e-2).begin(1)
    assert model.blocks[1].mlp.drop2.training and model.blocks[1].attn.proj_drop.training
    assert not model.blocks[0].mlp.drop1.training and not model.pos_drop.training
    Tuning(model, None, 1e-2)
    assert all(module.training for module in model.modules())


def test_dropout_in_front_of_the_head_stays():
    with torch.device("meta"):
        model = build_model("torchvision:squeezenet1_1", num_classes=5)
    Tuning(model, settings("head"), 1e-2)
    assert model.classifier[0].training and not model.features.training


# Groups


def test_groups_begin_at_their_epochs_with_their_rates_and_the_optimizer_s_state_stays():
    model = model_of("resnet")
    tuning = Tuning(model, gradual((["head"], 0, 1e-2), (["layer4", "layer3.0.conv1"], 2, 1e-3)), 1e-2)
    head = set(parameters_of(model, ["head"], ""))
    late = set(parameters_of(model, ["layer4", "layer3.0.conv1"], ""))
    assert {name: tuning.scales[name] for name in head | late} == pytest.approx(
        {**dict.fromkeys(head, 1.0), **dict.fromkeys(late, 0.1)}
    )
    assert tuning.learns_from == {**dict.fromkeys(head, 0), **dict.fromkeys(late, 2)}
    optimizer = optimizer_of(model, tuning)
    scale_of = {p: group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {scale_of[p] for name, p in model.named_parameters() if name in late} == {0.1}
    learning = [tuning.describe(0)]
    for epoch in (0, 1):
        tuning.begin(epoch)
        before = copied(model)
        steps(model, optimizer)
        assert moved(model, before) == head
    assert not any(model.get_parameter(name) in optimizer.state for name in late)
    seen = {name: optimizer.state[model.get_parameter(name)]["exp_avg"].clone() for name in head}
    tuning.begin(2)
    learning += [tuning.describe(1), tuning.describe(2), tuning.describe(3)]
    for name, average in seen.items():
        state = optimizer.state[model.get_parameter(name)]
        assert state["step"] == 4 and torch.equal(state["exp_avg"], average)
    before = copied(model)
    steps(model, optimizer)
    buffers = {name for name, _ in model.layer4.named_buffers(prefix="layer4")}
    assert moved(model, before) == head | late | buffers
    assert optimizer.state[model.fc.weight]["step"] == 6
    assert "fc.weight" in learning[0] and learning[1] == learning[3] == "" and "layer4.0" in learning[2]
    assert tuning.saved_names() is None and not tuning.partial
    assert tuning.trained() == sum(model.get_parameter(name).numel() for name in head | late)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([(["head"], 0, 0.1), (["head.weight"], 1, 0.1)], "finetune.groups: head.weight is in two groups"),
        ([(["hed"], 0, 0.1)], "finetune.groups.parts = 'hed': matches no parameter of the model; did you mean head?"),
        ([(["blocks.11"], 0, 0.1)], "did you mean blocks.1"),
        ([(["zzz"], 0, 0.1)], "known: cls_token, pos_embed, patch_embed, blocks, norm, head"),
        ([([""], 0, 0.1)], "finetune.groups.parts = ''"),
    ],
)
def test_parts_that_are_none(groups, words):
    with pytest.raises(UserError) as error:
        Tuning(model_of("vit"), gradual(*groups), 1e-2)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_part_is_not_a_beginning_of_a_name():
    model = model_of("vit")
    assert all(name.startswith("blocks.1.") for name in parameters_of(model, ["blocks.1"], ""))
    assert parameters_of(model, ["head", "head.weight"], "") == ["head.weight", "head.bias"]


# Layers


def layers_of(name, **options):
    with torch.device("meta"):
        return build_model(name, num_classes=5, **options)


@pytest.mark.parametrize(
    ("make", "first", "order", "most"),
    [
        (lambda: model_of("vit"), "cls_token pos_embed patch_embed", "blocks.0 blocks.1 blocks.2 head", 4),
        (
            lambda: model_of("hybrid"), "vit.cls_token vit.pos_embed vit.patch_embed",
            "vit.blocks.0 vit.blocks.2 conv_head.stages.0 conv_head.stages.1 conv_head.fc", 6,
        ),
        (lambda: model_of("conformer"), "cls_token conv1 bn1 trans_patch_conv",
         "conv_1 conv_trans_2 conv_trans_3 conv_cls_head", 4),
        (lambda: model_of("timm"), "cls_token pos_embed patch_embed", "blocks.0 blocks.1 head", 3),
        (lambda: model_of("resnet"), "conv1 bn1", "layer1 layer2 layer3 layer4 fc", 5),
        (lambda: layers_of("timm:swin_tiny_patch4_window7_224", options={"depths": [1, 1, 1, 1], "embed_dim": 24}),
         "patch_embed", "layers.0 layers.1 layers.2 layers.3 head.fc", 5),
        (lambda: layers_of("timm:convnext_atto"), "stem", "stages.0 stages.1 stages.2 stages.3 head.fc", 13),
        (lambda: model_of("torchvision"), "class_token conv_proj encoder.pos_embedding",
         "encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_1 encoder.layers.encoder_layer_2 heads.head", 4),
        (lambda: layers_of("torchvision:convnext_tiny"), "features.0",
         "features.1 features.2 features.3 features.4 features.5 features.6 features.7 classifier.2", 9),
        (lambda: layers_of("torchvision:squeezenet1_1"), "features.0", "features.3 features.12 classifier", 10),
        (lambda: layers_of("torchvision:resnet18"), "conv1 bn1", "layer1 layer2 layer3 layer4 fc", 6),
        (lambda: layers_of("lenet5"), "conv1", "conv2 fc1 fc2 head", 5),
    ],
    ids=["vit", "hybrid", "conformer", "timm-vit", "timm-resnet", "timm-swin", "timm-convnext", "torchvision-vit",
         "torchvision-convnext", "squeezenet", "torchvision-resnet", "lenet5"],
)  # fmt: skip
def test_layers_are_counted_from_the_input(make, first, order, most):
    model = make()
    depths = layer_depths(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]

    def span(part):
        found = [depth for name, depth in depths.items() if name == part or name.startswith(f"{part}.")]
        return min(found), max(found)

    assert len({depth for part in first.split() for depth in span(part)}) == 1
    spans = [span(first.split()[0]), *(span(part) for part in order.split())]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert max(depths.values()) == most
    heads = tuple(f"{head}." for head in model.head_names)
    assert {depth for name, depth in depths.items() if name.startswith(heads)} == {most}


def test_rates_decay_away_from_the_head():
    model = model_of("hybrid")
    tuning = Tuning(model, settings("full", layer_decay=0.5), 1e-2)
    assert tuning.scales["vit.head.weight"] == tuning.scales["conv_head.fc.bias"] == 1.0
    assert tuning.scales["vit.blocks.0.norm1.weight"] == 0.5**5 and tuning.scales["vit.pos_embed"] == 0.5**6
    assert set(tuning.scales) == {name for name, _ in model.named_parameters()}
    groups = optimizer_of(model, tuning).param_groups
    assert sorted({group["scale"] for group in groups}) == [0.5**i for i in range(6, -1, -1)]
    assert set(Tuning(model, settings("full"), 1e-2).scales.values()) == {1.0}


# LoRA

MERGED = {"merge": {"method": "tome", "r": 3}}
LORA = [
    ("vit", {}, None, 6), ("vit", MERGED, None, 6), ("vit", {}, ["qkv", "blocks.0.mlp.fc1"], 4),
    ("hybrid", MERGED, None, 6), ("hybrid", {}, ["conv_head.bridge.proj"], 1), ("conformer", {}, None, 6),
    ("timm", {}, None, 4), ("timm", MERGED, None, 4), ("distilled", {}, ["fc2"], 2), ("beit", {}, None, 3),
    ("beit", MERGED, ["proj", "fc1"], 7), ("resnet", {}, ["conv2"], 4),
    ("resnext", {}, ["conv1", "conv3"], 9), ("torchvision", {}, None, 3),
    ("torchvision", {}, ["self_attention", "mlp.0"], 6), ("torchvision", MERGED, ["mlp.0", "mlp.3"], 6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "targets", "count"), LORA)
def test_adapters_learn_and_vanish_again(name, options, targets, count):
    model = model_of(name, **options)
    plain, modules = copied(model), {n: type(m) for n, m in model.named_modules()}
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        start = model.eval()(x)
    tuning = Tuning(model, settings("lora", rank=2, **({"targets": targets} if targets else {})), 1e-2)
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model(x), start, atol=1e-5, rtol=1e-5)  # adapters start at nothing
    tuning.begin(0)
    saved = tuning.saved_names()
    heads = tuple(f"{head}." for head in model.head_names)
    assert {n for n in saved if "lora_" not in n} == {n for n in plain if n.startswith(heads)}
    assert saved == set(tuning.learns_from) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert tuning.trained() == sum(p.numel() for p in model.parameters() if p.requires_grad)

    before, digest = copied(model), digest_of(frozen_state(model, saved))
    steps(model, optimizer_of(model, tuning), count=3)
    assert moved(model, before) == saved
    assert digest_of(frozen_state(model, saved)) == digest
    assert set(partial_state(model, saved)) == saved and set(partial_state(model, None)) == set(before)

    model.eval()
    with torch.no_grad():
        tuned = model(x)
        assert (tuned - start).abs().max() > 1e-3
        assert merge_lora(model) == count
        torch.testing.assert_close(model(x), tuned, atol=1e-5, rtol=1e-5)
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in plain.items()}
    assert merge_lora(model) == 0


@pytest.mark.parametrize(
    ("name", "options", "targets", "words"),
    [
        ("vit", {}, ["zkv"], "finetune.targets = 'zkv': matches no linear or attention; did you mean qkv?"),
        ("vit", {}, ["head"], "finetune.targets = 'head': matches no"),
        ("vit", {}, ["norm1"], "finetune.targets = 'norm1': matches no"),
        ("beit", {}, ["qkv"], "finetune.targets = 'qkv': Beit uses its weight without calling it"),
        ("torchvision", {}, ["out_proj"], "finetune.targets = 'out_proj': VisionTransformer uses its weight without"),
        ("torchvision", MERGED, ["self_attention"], "'self_attention': VisionTransformer uses its weight without"),
        ("torchvision", MERGED, None, "finetune.targets: VisionTransformer uses its attention's weights without"),
        ("resnet", {}, None, "finetune.targets: ResNet has no attention to adapt; name other modules"),
    ],
)
def test_adapters_that_would_do_nothing_are_refused(name, options, targets, words):
    with pytest.raises(UserError) as error:
        Tuning(model_of(name, **options), settings("lora", **({"targets": targets} if targets else {})), 1e-2)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


class OneConv(nn.Module):
    """A convolution, its mean over the map, and a head."""

    img_size, in_chans, head_names = 8, 4, ("head",)

    def __init__(self, conv):
        super().__init__()
        self.conv, self.head = conv, nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Conv2d(4, 6, 3, groups=2), "is a convolution in 2 groups"),
        (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), "is a dilated convolution"),
        (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), "is a convolution with padding by circular"),
        (lambda: StdConv2d(4, 6, 3), "is a StdConv2d"),
        (lambda: nn.Conv2d(4, 6, 3, padding=1), None),
        (lambda: Conv2dSame(4, 6, 3, stride=2), None),
    ],
)
@pytest.mark.parametrize("rank", [3, 4])  # of groups peft refuses only those that do not divide the rank
def test_a_convolution_learns_only_what_its_weights_can_take(make, words, rank):
    torch.manual_seed(0)
    model = OneConv(make())
    if words:
        with pytest.raises(UserError) as error:
            add_lora(model, rank, 4.0, 0.0, ["conv"])
        said = f"finetune.targets = ['conv']: conv {words}, so that no adapter can be added to its weights; name others"
        assert str(error.value) == said
    else:
        add_lora(model, rank, 4.0, 0.0, ["conv"])
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        x = torch.randn(2, 4, 8, 8)
        with torch.no_grad():
            tuned = model(x)
            assert merge_lora(model) == 1
            torch.testing.assert_close(model(x), tuned, atol=1e-5, rtol=1e-5)


def test_a_model_with_grouped_convolutions_is_refused_by_name():
    with pytest.raises(UserError, match=r"targets = \['conv2'\]: layer1\.0\.conv2 is a convolution in 2 groups, so"):
        Tuning(model_of("resnext"), settings("lora", rank=2, targets=["conv2"]), 1e-2)


def test_torchvision_s_swin_uses_its_projections_without_a_call():
    model = build_model("torchvision:swin_t", num_classes=5, img_size=32)
    with pytest.raises(UserError, match=r"targets = 'qkv': SwinTransformer uses its weight"):
        lora_targets(model, ["qkv"])
    assert all(name.endswith("mlp.0") for name in lora_targets(model, ["mlp.0"]))


def test_dropout_is_for_called_modules():
    with pytest.raises(UserError, match=r"finetune\.dropout = 0\.1: not for adapters of .*self_attention; use 0"):
        Tuning(model_of("torchvision"), settings("lora", dropout=0.1), 1e-2)
    model = model_of("vit")
    Tuning(model, settings("lora", dropout=0.1), 1e-2)
    dropouts = [m for n, m in model.named_modules() if n.endswith("lora_dropout.default")]
    assert len(dropouts) == 6 and all(isinstance(m, nn.Dropout) and m.p == 0.1 and m.training for m in dropouts)


def test_what_is_not_saved_is_known_by_its_digest():
    tuning = Tuning(model := model_of("vit"), settings("head"), 1e-2)
    names = tuning.saved_names()
    kept, frozen = partial_state(model, names), frozen_state(model, names)
    assert set(kept) | set(frozen) == set(model.state_dict()) and not set(kept) & set(frozen)
    assert frozen_state(model, None) == {}
    digest = digest_of(frozen)
    with torch.no_grad():
        model.head.weight.add_(1)
        assert digest_of(frozen_state(model, names)) == digest
        model.cls_token[0, 0, 0] += 1e-6
        assert digest_of(frozen_state(model, names)) != digest
