"""Fine-tuning: what learns, when, how fast; layers by depth."""

from itertools import pairwise

import pytest
import torch

from engine.runs.checkpoints.checkpoint import digest_of
from engine.settings.layers import load_settings
from models import build_model
from models.finetune import Tuning, frozen_state, layer_depths, parameters_of, partial_state
from models.settings import UserError
from tests.models.tuned_models import SMALL, copied, gradual, model_of, moved, optimizer_of, settings, steps

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
        ("vit", ["head"]),
        ("hybrid", ["vit.head", "conv_head.fc"]),
        ("resnet", ["fc"]),
        ("timm", ["head"]),
        ("conformer", ["conv_cls_head", "trans_cls_head"]),
        ("distilled", ["head", "head_dist"]),
        ("torchvision", ["heads.head"]),
    ],
)
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
    assert tuning.describe().startswith(f"learning: {count:,} of {total:,} parameters ({100 * count / total:.2f} %)")
    assert not tuning.begin(0) and not tuning.begin(1)  # what learns stays the same


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
    learning = [tuning.describe()]
    for epoch in (0, 1):
        assert not tuning.begin(epoch)
        before = copied(model)
        steps(model, optimizer)
        assert moved(model, before) == head
    assert not any(model.get_parameter(name) in optimizer.state for name in late)
    seen = {name: optimizer.state[model.get_parameter(name)]["exp_avg"].clone() for name in head}
    assert tuning.begin(2) and not tuning.begin(3)
    learning += [tuning.describe()]
    for name, average in seen.items():
        state = optimizer.state[model.get_parameter(name)]
        assert state["step"] == 4 and torch.equal(state["exp_avg"], average)
    before = copied(model)
    steps(model, optimizer)
    buffers = {name for name, _ in model.layer4.named_buffers(prefix="layer4")}
    assert moved(model, before) == head | late | buffers
    assert optimizer.state[model.fc.weight]["step"] == 6
    assert "fc.weight" in learning[0] and "layer4.0" in learning[1]
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
            lambda: model_of("hybrid"),
            "vit.cls_token vit.pos_embed vit.patch_embed",
            "vit.blocks.0 vit.blocks.2 conv_head.stages.0 conv_head.stages.1 conv_head.fc",
            6,
        ),
        (
            lambda: model_of("conformer"),
            "cls_token conv1 bn1 trans_patch_conv",
            "conv_1 conv_trans_2 conv_trans_3 conv_cls_head",
            4,
        ),
        (lambda: model_of("timm"), "cls_token pos_embed patch_embed", "blocks.0 blocks.1 head", 3),
        (lambda: model_of("resnet"), "conv1 bn1", "layer1 layer2 layer3 layer4 fc", 5),
        (
            lambda: layers_of("timm:swin_tiny_patch4_window7_224", options={"depths": [1, 1, 1, 1], "embed_dim": 24}),
            "patch_embed",
            "layers.0 layers.1 layers.2 layers.3 head.fc",
            5,
        ),
        (lambda: layers_of("timm:convnext_atto"), "stem", "stages.0 stages.1 stages.2 stages.3 head.fc", 13),
        (
            lambda: model_of("torchvision"),
            "class_token conv_proj encoder.pos_embedding",
            "encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_1 encoder.layers.encoder_layer_2 heads.head",
            4,
        ),
        (
            lambda: layers_of("torchvision:convnext_tiny"),
            "features.0",
            "features.1 features.2 features.3 features.4 features.5 features.6 features.7 classifier.2",
            9,
        ),
        (lambda: layers_of("torchvision:squeezenet1_1"), "features.0", "features.3 features.12 classifier", 10),
        (lambda: layers_of("torchvision:resnet18"), "conv1 bn1", "layer1 layer2 layer3 layer4 fc", 6),
        (lambda: layers_of("lenet5"), "conv1", "conv2 fc1 fc2 head", 5),
        (lambda: layers_of("cnn"), "stages.0", "stages.1 stages.2 head", 4),
    ],
    ids=[
        "vit",
        "hybrid",
        "conformer",
        "timm-vit",
        "timm-resnet",
        "timm-swin",
        "timm-convnext",
        "torchvision-vit",
        "torchvision-convnext",
        "squeezenet",
        "torchvision-resnet",
        "lenet5",
        "cnn",
    ],
)
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
