"""LoRA: adapters in, learning, and out again; what they are not for is refused."""

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from engine.runs.checkpoints.checkpoint import digest_of
from models import build_model
from models.finetune import Tuning, frozen_state, partial_state
from models.lora import add_lora, lora_targets, merge_lora
from models.settings import UserError
from tests.models.tuned_models import copied, model_of, moved, optimizer_of, settings, steps

MERGED = {"merge": {"method": "tome", "r": 3}}
LORA = [
    ("vit", {}, None, 6),
    ("vit", MERGED, None, 6),
    ("vit", {}, ["qkv", "blocks.0.mlp.fc1"], 4),
    ("hybrid", MERGED, None, 6),
    ("hybrid", {}, ["conv_head.bridge.proj"], 1),
    ("conformer", {}, None, 6),
    ("timm", {}, None, 4),
    ("timm", MERGED, None, 4),
    ("distilled", {}, ["fc2"], 2),
    ("beit", {}, None, 3),
    ("beit", MERGED, ["proj", "fc1"], 7),
    ("eva", {}, None, 12),
    ("eva", MERGED, ["v_proj", "fc2"], 6),
    ("resnet", {}, ["conv2"], 4),
    ("resnext", {}, ["conv1", "conv3"], 9),
    ("torchvision", {}, None, 3),
    ("torchvision", {}, ["self_attention", "mlp.0"], 6),
    ("torchvision", MERGED, ["mlp.0", "mlp.3"], 6),
]


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
