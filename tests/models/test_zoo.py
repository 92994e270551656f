"""timm's and torchvision's models as ours: sizes and statistics from metadata, heads, and refusals in one line."""

import pytest
import timm
import torch
import torchvision
from timm.models import get_deprecated_models
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import MODELS, build_model, split_name, zoo
from models.heads import PowerNorm, Standardised
from models.interface import removed_per_block
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from models.settings.zoo import TimmSettings, normalisation, note_renamed

VIT = "timm:vit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 24}


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch):
    """Each test tries sizes itself, whatever tests before it have tried."""
    monkeypatch.setattr(zoo, "_TAKEN", set())


def settings(name, **options):
    values = split_name({"name": name, "num_classes": 5, **options})
    return check(MODELS[values["name"]][0], values, where="model")


def shapes(name, **options):
    """The model without storage, as nothing here needs numbers."""
    with torch.device("meta"):
        return build_model(name, num_classes=5, **options)


@pytest.mark.parametrize(
    ("name", "weights", "size", "mean", "std"),
    [
        ("torchvision:vit_l_16", "torchvision:vit_l_16.IMAGENET1K_SWAG_E2E_V1", 512, 0.485, 0.229),
        ("torchvision:vit_l_16", None, 224, None, None),
        ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1", 224, 0.485, 0.229),
        ("timm:vit_base_patch16_384.augreg_in21k_ft_in1k", None, 384, None, None),
        ("timm:vit_base_patch16_384", "timm:vit_base_patch16_384.augreg_in21k_ft_in1k", 384, 0.5, 0.5),
        ("timm:vit_base_patch16_224", "timm:vit_base_patch16_224.dino", 224, 0.485, 0.229),
        ("timm:swinv2_base_window12to16_192to256.ms_in22k_ft_in1k", None, 256, None, None),
        ("timm:resnet18", "some/file.pth", 224, 0.485, 0.229),
        ("vit", "timm:vit_base_patch16_224.augreg_in21k", 224, 0.5, 0.5),
        ("vit", "torchvision:vit_b_16", 224, 0.485, 0.229),
        ("vit", "some/file.pth", 224, None, None),
    ],
)
def test_size_and_statistics_are_the_weights_own(name, weights, size, mean, std):
    s = settings(name, weights=weights)
    assert s.img_size == size
    found = normalisation(s)
    assert found is None if mean is None else (found[0][0], found[1][0]) == (mean, std)


def test_a_given_size_wins_and_a_null_does_not():
    assert settings("timm:resnet18", img_size=64).img_size == 64
    assert settings("timm:resnet18", img_size=None).img_size == 224


def test_statistics_are_of_three_channels_and_not_a_run_s(tmp_path):
    assert normalisation(settings("timm:resnet18", weights="timm:resnet18", in_chans=1)) is None
    assert normalisation(settings("timm:resnet18", weights=str(tmp_path))) is None
    with pytest.raises(UserError, match=r"model\.weights = 'timm:vit_bas'.*did you mean"):
        normalisation(settings("vit", weights="timm:vit_bas"))


@pytest.mark.parametrize(
    ("name", "size", "works"),
    [
        ("torchvision:squeezenet1_1", 10, "sizes that work: 32, 48, 64, 224"),
        ("torchvision:squeezenet1_1", 1, "224"),
        ("torchvision:vit_b_16", 30, "sizes that work: 16, 32, 48, 224"),
        (VIT, 7, "sizes that work: 16, 32, 48, 224"),
        (VIT, 1, "sizes that work: 16, 32, 48, 224"),
        ("timm:convnext_atto", 7, "sizes that work: 32, 48, 64, 224"),
    ],
)
def test_a_size_that_does_not_go_through_is_refused_with_those_that_do(name, size, works):
    options = {"options": SMALL} if name == VIT else {}
    with pytest.raises(UserError) as error:
        shapes(name, img_size=size, **options)
    assert str(error.value).startswith(f"model.img_size = {size}: does not go through {name}; sizes that work: ")
    assert works in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("timm:swin_tiny_patch4_window7_224", SWIN, 32),
        ("timm:swin_tiny_patch4_window7_224", SWIN, 100),
        ("timm:swinv2_tiny_window8_256", SWIN, 100),
        (VIT, SMALL, 48),
        ("timm:resnet18", {}, 7),
        ("torchvision:squeezenet1_1", {}, 17),
    ],
)
def test_other_sizes_go_through(name, options, size):
    model = shapes(name, img_size=size, options=options).eval()
    assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 5)


def test_a_model_that_cannot_be_built_without_storage():
    assert build_model("torchvision:regnet_y_400mf", num_classes=5, img_size=40).img_size == 40


def test_whether_a_size_was_tried_before_changes_no_weights():
    first, again = {}, {}
    for state in (first, again):
        torch.manual_seed(0)
        state |= build_model("torchvision:regnet_y_400mf", num_classes=5, img_size=48).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("merge", [None, {"target_ratio": 1.3}])
def test_a_constructor_that_reads_numbers_from_tensors(merge, monkeypatch):
    """The ViTs of timm 1.0.9, the oldest version that setup.py allows, read their drop rates like this."""
    init = VisionTransformer.__init__

    def init_of_old_versions(self, *args, **kwargs):
        assert [rate.item() for rate in torch.linspace(0, 0.1, 2)] == pytest.approx([0, 0.1])
        init(self, *args, **kwargs)

    monkeypatch.setattr(VisionTransformer, "__init__", init_of_old_versions)
    model = build_model("timm:vit_tiny_patch16_224", num_classes=5, img_size=64, options={"depth": 3}, merge=merge)
    assert (model.img_size, sum(removed_per_block(model)) > 0) == (64, merge is not None)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_swin_s_patches_must_fit(size):
    with pytest.raises(UserError, match=rf"img_size = {size}: .*sizes that work: 16, 32, 48, 224"):
        shapes("timm:swin_tiny_patch4_window7_224", img_size=size, options=SWIN)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (VIT, {"foo": 1}, ["'foo': 1", "refuses them", "argument 'foo'"]),
        ("torchvision:resnet18", {"foo": 1}, ["'foo': 1", "argument 'foo'"]),
        (VIT, {"depth": "x"}, ["'depth': 'x'", "correct or drop"]),
        (VIT, {"global_pool": "foo"}, ["'global_pool': 'foo'", "correct or drop"]),
        (VIT, {**SMALL, "global_pool": ""}, ["'global_pool': ''", "makes no classifier"]),
        (VIT, {"embed_dim": 7}, ["'embed_dim': 7", "correct or drop"]),
        ("timm:resnet18", {"act_layer": "foo"}, ["'act_layer': 'foo'", "correct or drop"]),
        ("torchvision:vit_b_16", {"dropout": 3.0}, ["'dropout': 3.0", "correct or drop"]),
        ("timm:resnet18", {"num_classes": 3}, ["options.num_classes = 3", "use model.num_classes"]),
        ("torchvision:vit_b_16", {"image_size": 32}, ["options.image_size = 32", "use model.img_size"]),
        ("timm:resnet18", {"pretrained": True}, ["options.pretrained = True", "use model.weights"]),
        ("timm:resnet18", {"features_only": True}, ["options.features_only", "omit it"]),
        ("torchvision:googlenet", {"aux_logits": True}, ["options.aux_logits", "omit it"]),
    ],
)
def test_options_are_refused_by_name(name, options, words):
    with pytest.raises(UserError) as error:
        shapes(name, options=options)
    said = str(error.value)
    assert said.startswith("model.options") and "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "timm:resnt18"}, ["model.arch = 'resnt18'", "did you mean resnet18"]),
        ({"name": "timm:VIT"}, ["model.arch = 'VIT'", "more"]),
        ({"name": "timm:"}, ["model.arch = ''"]),
        ({"name": "timm"}, ["model.arch: missing"]),
        ({"name": "timm:resnet18.a1_in1"}, ["'resnet18.a1_in1'", "did you mean resnet18.a1_in1k"]),
        ({"name": "timm:resnet18", "weights": "timm:resnt18"}, ["model.weights = 'resnt18'", "resnet18"]),
        ({"name": "torchvision:resnet81"}, ["model.arch = 'resnet81'", "resnet18"]),
        ({"name": "torchvision:fcn_resnet50"}, ["no such classifier"]),
        ({"name": "torchvision:resnet18", "weights": "torchvision:resnet18.V1"}, ["no such weights", "IMAGENET1K_V1"]),
        ({"name": "tim:resnet18"}, ["model.name = 'tim:resnet18'", "timm:NAME"]),
        ({"name": "timm:resnet18", "img_size": 0}, ["model.img_size = 0: must be greater than 0"]),
        ({"name": "torchvision:resnet18", "in_chans": 1}, ["model.in_chans = 1", "takes 3 channels"]),
        ({"name": "timm:deepseek_vit_412m_enc"}, ["timm knows no classifier"]),
        ({"name": "timm:convnext_atto", "merge": {"r": 4}}, ["model.merge, timm:convnext_atto", "convolves"]),
        ({"name": "timm:swin_tiny_patch4_window7_224", "merge": {"r": 4}}, ["windows"]),
        ({"name": VIT, "merge": {"r": {"train": [0, 4]}}}, ["merge.r = {train: [0, 4]}", "each step", "number"]),
        ({"name": VIT, "merge": {"r": [1, 2]}}, ["merge.r has 2 entries", "12 blocks"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        shapes(**options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "heads", "options"),
    [
        ("timm:resnet18", ("fc",), {}),
        ("timm:deit_tiny_distilled_patch16_224", ("head", "head_dist"), {"options": SMALL}),
        ("timm:convnext_atto", ("head.fc",), {}),
        ("timm:swinv2_tiny_window8_256", ("head.fc",), {"options": SWIN}),
        ("torchvision:resnet18", ("fc",), {}),
        ("torchvision:vit_b_16", ("heads.head",), {}),
        ("torchvision:convnext_tiny", ("classifier.2",), {}),
        ("torchvision:squeezenet1_1", ("classifier",), {}),
        ("torchvision:googlenet", ("fc",), {}),
    ],
)
def test_heads_classify_and_names_are_the_libraries(name, heads, options):
    model = shapes(name, **options)
    assert model.head_names == heads
    assert (model.num_classes, model.in_chans) == (5, 3)
    library, _, arch = name.partition(":")
    with torch.device("meta"):
        if library == "timm":
            plain = timm.create_model(arch, num_classes=5, **options.get("options", {}))
        else:
            given = {"aux_logits": False, "init_weights": False} if arch == "googlenet" else {}
            plain = torchvision.models.get_model(arch, num_classes=5, **given)
    state = model.state_dict()
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in plain.state_dict().items()}
    for head in heads:
        assert any(name.startswith(f"{head}.") for name in state)


@pytest.mark.parametrize("head", ["mlp", "power"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:convnext_tiny", {}),
        ("torchvision:resnet18", {}),
        ("torchvision:squeezenet1_1", {}),
        ("torchvision:vit_b_16", {}),
        ("timm:convnext_atto", {}),
        ("timm:resnetv2_50", {"layers": [1, 1, 1, 1]}),
        ("timm:swinv2_tiny_window8_256", SWIN),
        ("timm:deit_tiny_distilled_patch16_224", SMALL),
        (VIT, SMALL),
    ],
)
def test_another_head_stands_where_the_classifier_stood(name, options, head):
    model = shapes(name, options=options, head=head, head_dim=16, head_dropout=0.25)
    for path in model.head_names:
        layers = list(model.get_submodule(path))
        if "squeezenet" in name or "resnetv2" in name:  # their classifiers are convolutions
            assert [type(layer) for layer in layers[:2]] == [nn.AdaptiveAvgPool2d, nn.Flatten]
            layers = layers[2:]
        if head == "mlp":
            assert [type(layer) for layer in layers] == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
            assert layers[0].p == 0.25 and layers[1].out_features == 16
        else:
            assert [type(layer) for layer in layers] == [PowerNorm, Standardised, nn.Dropout, nn.Linear]
            assert layers[2].p == 0.25 and not layers[1].affine
    model.eval()
    assert model(torch.zeros(2, 3, model.img_size, model.img_size, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)])
def test_standardised_features(shape):
    x, norm = 3 * torch.randn(*shape) + 2, Standardised(4)
    rows = x.flatten(0, -2)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), expected.view(shape))
    assert torch.allclose(norm.running_mean, 0.1 * rows.mean(0)) and not list(norm.parameters())


def test_power_normalisation():
    x = torch.tensor([[-4.0, 0.0, 0.25, 9.0]], requires_grad=True)
    roots = PowerNorm()(x)
    torch.testing.assert_close(roots, torch.tensor([[-2.0, 0.0, 0.5, 3.0]]), rtol=1e-3, atol=0)
    roots.sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad > 0).all()


def test_the_power_head_classifies_what_is_pooled():
    torch.manual_seed(0)
    model = build_model("torchvision:squeezenet1_1", num_classes=5, head="power").eval()
    x = torch.randn(2, 3, 224, 224)
    linear = model.classifier[-1]
    with torch.no_grad():
        roots = model.features(x).mean((2, 3)).sqrt()  # after a ReLU nothing is negative
        torch.testing.assert_close(model(x), roots @ linear.weight.T + linear.bias, rtol=1e-2, atol=1e-3)


def test_a_grey_image_goes_into_timm_s():
    model = shapes(VIT, in_chans=1, options=SMALL).eval()
    assert model(torch.zeros(1, 1, 224, 224, device="meta")).shape == (1, 5)


def test_training_gives_logits_too():
    """GoogLeNet's auxiliary heads would make it a tuple."""
    assert shapes("torchvision:googlenet").train()(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_merging_wraps_and_names_stay():
    torch.manual_seed(0)
    options = {"num_classes": 5, "img_size": 32, "options": {**SMALL, "patch_size": 8}}
    plain, merged = build_model(VIT, **options), build_model(VIT, **options, merge={"method": "tome", "r": 3})
    merged.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert merged.head_names == plain.head_names
    assert not torch.equal(merged.eval()(x), plain.eval()(x))
    unmerged = build_model(VIT, **options, merge={"method": "tome", "r": 0})
    unmerged.load_state_dict(plain.state_dict())
    assert torch.equal(unmerged.eval()(x), plain(x))


def test_every_old_name_of_timm_stands_for_the_present_one():
    for old, new in get_deprecated_models().items():
        settings = check(TimmSettings, {"arch": old, "weights": f"timm:{old}"}, "model")
        assert settings.arch.startswith(new) and settings.weights == f"timm:{settings.arch}", old
        assert timm.is_model(settings.arch.split(".")[0]) and settings.img_size == default_size(settings.arch)


def default_size(name):
    return timm.models.get_pretrained_cfg(name).input_size[-1]


def test_an_old_name_is_noted_once(caplog):
    note_renamed.cache_clear()
    for _ in range(2):
        model = build_model("timm:mnasnet_b1", num_classes=3)
    assert type(model).__name__ == "EfficientNet"
    assert [record.message for record in caplog.records] == [
        "timm:mnasnet_b1 is an old name: it is now timm:mnasnet_100, in the settings too"
    ]
    assert ViTSettings(weights="timm:vit_tiny_patch16_224_in21k").weights == "timm:vit_tiny_patch16_224.augreg_in21k"


def test_old_names_with_a_tag():
    with pytest.raises(UserError, match="'tv_resnet50.x': timm has no such weights; did you mean resnet50.tv_in1k"):
        check(TimmSettings, {"arch": "tv_resnet50.x"}, "model")
