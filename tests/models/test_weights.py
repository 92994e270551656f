"""Every published layout loads, and gives the logits of the library that defines it."""

import numpy
import pytest
import safetensors.torch
import torch
import torchvision
from timm.models.swin_transformer import SwinTransformer
from torchvision.models.densenet import DenseNet

from models import UserError, build_model
from models.weights import load_weights
from tests.models.weight_files import (
    TINY,
    distilled,
    google,
    images,
    our_vit,
    random,
    same,
    timm_beit,
    timm_vit,
    torchvision_vit,
)


@pytest.fixture
def save(tmp_path):
    """Writes weights, or a checkpoint, by suffix; returns the path."""

    def write(state, name="weights.pth"):
        path = tmp_path / name
        if path.suffix == ".npz":
            numpy.savez(path, **state)
        elif path.suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)
        return str(path)

    return write


GOOGLE = {
    "original": {},
    "optimizer": {"root": "opt/target/"},
    "big_vision": {"newer": True, "root": "params/"},
    "stacked": {"newer": True, "stacked": True, "root": "params/"},
}


@pytest.mark.parametrize("layout", GOOGLE)
def test_google_npz_as_timm_loads_it(save, layout):
    path, timm = save(google(timm_vit(), **GOOGLE[layout]), "weights.npz"), timm_vit(seed=3)
    timm.load_pretrained(path)
    for model in (our_vit(), timm_vit(seed=4), torchvision_vit(seed=4)):
        report = load_weights(model, path)
        assert report.share == 1 and not report.missing and not report.unexpected
        same(model, timm)


def test_google_npz_with_more_than_the_model(save):
    """The other half of a model of images and texts, the optimizer, counters, and bytes in another order."""
    arrays = {name: value.astype(">f4") for name, value in google(timm_vit(), newer=True, root="params/img/").items()}
    beside = {
        "params/txt/embedding": numpy.zeros((9, 32), "f4"),
        "opt/0/mu": numpy.zeros(3, "f4"),
        "step": numpy.int64(3),
    }
    model = our_vit()
    report = load_weights(model, save(arrays | beside, "weights.npz"))
    assert report.share == 1 and report.unexpected == ["params/txt/embedding", "opt/0/mu"]  # numbers are no weights
    assert "weights: 2 unexpected: params/txt/embedding, opt/0/mu" in report.lines()
    same(model, timm_vit())


def test_google_npz_with_two_tables_of_positions(save):
    arrays = google(timm_vit(), newer=True) | {
        "Transformer/posembed_input/pos_embedding": numpy.zeros((1, 17, 32), "f4")
    }
    with pytest.raises(UserError, match="1 without a place in the model .Transformer/posembed_input/pos_embedding"):
        load_weights(our_vit(), save(arrays, "weights.npz"))


def test_google_npz_without_a_blocks_keys(save):
    arrays = {
        name: value for name, value in google(timm_vit()).items() if "encoderblock_1" not in name or "/key/" not in name
    }
    with pytest.raises(UserError, match="4 without a place in the model .blocks.1.attn.query.weight, .* and 2 missing"):
        load_weights(our_vit(), save(arrays, "weights.npz"))


def test_a_head_of_two_layers_is_left_out(save):
    """Google's models from ImageNet-21k have a layer, pre_logits, between the class token and the head."""
    arrays = google(timm_vit()) | {"pre_logits/kernel": numpy.zeros((32, 32), "float32")}
    model = our_vit()
    before = model.head.weight.clone()
    report = load_weights(model, save(arrays, "weights.npz"))
    assert report.unexpected == ["pre_logits/kernel"] and report.replaced == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before) and report.share == 1


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "module"])
def test_timm_and_deit_files_into_ours(save, wrapper):
    timm, model = timm_vit(), our_vit()
    state = dict(timm.state_dict())
    path = save({wrapper: state, "epoch": 3, "model_ema": {"x": torch.zeros(1)}} if wrapper else state)
    report = load_weights(model, path)
    assert sorted(report.loaded) == sorted(model.state_dict())
    same(model, timm)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "encoder.", "model.backbone.", "visual.trunk."],
)
def test_prefixes(save, prefix):
    timm, model = timm_vit(), our_vit()
    load_weights(model, save({prefix + name: value for name, value in timm.state_dict().items()}))
    same(model, timm)


def test_a_teacher_is_preferred_to_its_student(save, caplog):
    """As in the files of DINO, whose authors evaluate the teacher."""
    student, teacher, model = timm_vit(seed=4, num_classes=0), timm_vit(num_classes=0), our_vit()

    def named(source):
        weights = {f"module.backbone.{name}": value for name, value in source.state_dict().items()}
        return weights | {"module.head.mlp.0.weight": torch.zeros(9, 32)}

    nested = {"student": named(student), "teacher": named(teacher), "epoch": 3}
    load_weights(model, save(nested))
    torch.testing.assert_close(model.norm.weight, teacher.norm.weight)
    assert "holds student as well; teacher is used" in caplog.text
    flat = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in nested[who].items()}
    model = our_vit()
    report = load_weights(model, save(flat))
    torch.testing.assert_close(model.norm.weight, teacher.norm.weight)
    assert "holds the same model under student.module.backbone., teacher.module.backbone.; teacher" in report.lines()[1]


def test_averaged_weights_where_there_are_no_others(save):
    timm, model = timm_vit(), our_vit()
    load_weights(model, save({"model_ema": dict(timm.state_dict()), "epoch": 1}))
    same(model, timm)


def test_distilled_deit_into_timm(save):
    source, target = distilled(), distilled(seed=2)
    load_weights(target, save({"model": source.state_dict()}))
    same(target, source)


def test_deit3_layer_scale(save):
    source, target = timm_vit(init_values=0.1), timm_vit(seed=2, init_values=0.1)
    names = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    state = {}
    for name, value in source.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value
    load_weights(target, save({"model": state}))
    same(target, source)


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision_vit_into_ours_and_timm(save, old_names):
    # pytorch.org's ViT and SWAG files have the names that torchvision's MLPBlock._load_from_state_dict converts.
    source = torchvision_vit()
    state = dict(source.state_dict())
    if old_names:
        state = {n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for n, v in state.items()}
        assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in state
    path = save(state)
    for model in (our_vit(), timm_vit(seed=2), torchvision_vit(seed=2)):
        report = load_weights(model, path)
        assert report.share == 1 and not report.missing + report.unexpected + report.replaced
        same(model, source)


def test_timm_into_torchvision_vit(save):
    source, model = timm_vit(), torchvision_vit(seed=2)
    load_weights(model, save(source.state_dict(), "weights.safetensors"))
    same(model, source)


# What microsoft/unilm's beit/modeling_finetune.py names and timm's Beit computes: the index of relative positions is a
# buffer of each block's attention (window 4 x 4, and the class token).
BEIT_INDEX = {f"blocks.{i}.attn.relative_position_index": (17, 17) for i in range(2)}


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_official_beit(save, wrapper):
    source, model = timm_beit(use_rel_pos_bias=True), timm_beit(2, use_rel_pos_bias=True)
    index = {name: torch.zeros(shape, dtype=torch.long) for name, shape in BEIT_INDEX.items()}
    report = load_weights(model, save({wrapper: {**source.state_dict(), **index}}))
    assert report.share == 1 and not report.missing + report.unexpected
    assert {"blocks.0.attn.q_bias", "blocks.1.attn.v_bias", "blocks.1.gamma_2", "fc_norm.weight"} < set(report.loaded)
    same(model, source)


def test_beit_before_fine_tuning_gives_every_block_its_table(save):
    # unilm's run_class_finetuning.py expands the shared table likewise; lm_head and mask_token are of pre-training.
    source, model = timm_beit(use_shared_rel_pos_bias=True), timm_beit(2, use_rel_pos_bias=True)
    extra = {"mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(9, 32)}
    report = load_weights(model, save({"model": {**source.state_dict(), **extra}}))
    assert sorted(report.unexpected) == ["lm_head.weight", "mask_token"]
    same(model, source)


def test_beit_tables_of_another_window(save):
    source, model = timm_beit(use_rel_pos_bias=True), timm_beit(2, img_size=48, use_rel_pos_bias=True)
    report = load_weights(model, save(source.state_dict()))
    assert ("blocks.0.attn.relative_position_bias_table", (52, 2), (124, 2)) in report.resized
    own, table = model.blocks[0].attn, source.blocks[0].attn
    torch.testing.assert_close(own.relative_position_bias_table[-3:], table.relative_position_bias_table[-3:])
    table.set_window_size((6, 6))
    torch.testing.assert_close(own.relative_position_bias_table, table.relative_position_bias_table)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_swin_of_another_head(save, head):
    # timm's filter takes a Swin without head.fc.weight for one of its old files, whose stages it renumbers.
    def swin(seed, num_classes=7):
        sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16}
        model = SwinTransformer(**sizes, depths=(1, 1), num_heads=(2, 2), num_classes=num_classes)
        if head == "mlp":
            model.head.fc = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Linear(8, num_classes))
        return random(model, seed)

    source, model = swin(0), swin(1)
    assert load_weights(model, save(source.state_dict())).share == 1
    same(model, source)


def test_old_densenet_names(save):
    def dense(seed):
        return random(DenseNet(8, (2, 2), 16, num_classes=5), seed)

    source, model = dense(0), dense(1)
    old = {
        n.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): v
        for n, v in source.state_dict().items()
        if "num_batches" not in n
    }
    report = load_weights(model, save(old))
    assert not report.missing + report.unexpected
    same(model, source)


def test_conformer_names_are_the_official_ones(save):
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "channel_ratio": 1}
    source, model = (random(build_model("conformer", **options, num_classes=5), seed) for seed in (0, 1))
    path = save({"model": source.state_dict(), "epoch": 300})
    assert not load_weights(model, path).missing
    same(model, source)
    report = load_weights(build_model("conformer", **options, num_classes=4), path)
    heads = ("trans_cls_head", "conv_cls_head")
    assert sorted(report.replaced) == sorted(f"{head}.{kind}" for head in heads for kind in ("weight", "bias"))


# hybrids


def hybrid(stem, **options):
    cnn = {"block": "convnext", "depth": 1, "dim": 16}
    return build_model("hybrid", **{**TINY, "num_classes": 7, "stem": stem, "cnn": cnn, **options})


def test_a_vit_into_a_hybrid_starts_as_that_vit(save):
    source, model = timm_vit(), hybrid("patch")
    report = load_weights(model, save(source.state_dict()))
    assert report.share == 1 and all(name.startswith("vit.") for name in report.loaded)
    assert report.missing and all(name.startswith("conv_head.") for name in report.missing)
    assert report.replaced == ["conv_head.fc.weight", "conv_head.fc.bias"]
    same(model, source)


def test_a_conv_stem_keeps_all_of_its_own(save):
    model = hybrid("conv")
    before = {name: value.clone() for name, value in model.vit.patch_embed.state_dict().items()}
    report = load_weights(model, save(torchvision_vit().state_dict()))
    assert set(report.missing) >= {"vit.patch_embed.proj.weight", "vit.patch_embed.proj.bias"}
    assert ("vit.patch_embed.proj.weight", (32, 3, 8, 8), (32, 32, 1, 1)) in report.mismatched
    assert all(torch.equal(value, before[name]) for name, value in model.vit.patch_embed.state_dict().items())
    torch.testing.assert_close(model.vit.norm.weight, torchvision_vit().encoder.ln.weight)


def test_a_hybrids_vit_into_a_vit_and_a_hybrid_into_another(save):
    source = random(hybrid("patch"))
    path = save({"model": source.state_dict()})
    model = our_vit()
    load_weights(model, path)
    same(model, source.vit)
    other = hybrid("patch", num_classes=3)
    report = load_weights(other, path)
    assert not report.missing and len(report.replaced) == 4
    torch.testing.assert_close(other.conv_head.norm.weight, source.conv_head.norm.weight)


# sizes, heads, channels


@pytest.mark.parametrize("target", [our_vit, timm_vit, lambda img_size: torchvision_vit(2, image_size=img_size)])
@pytest.mark.parametrize("source", [timm_vit, torchvision_vit])
def test_positions_are_resized_as_timm_does(save, source, target):
    path, model, timm = save(source().state_dict()), target(img_size=48), timm_vit(seed=3)
    load_weights(timm, path)
    timm.set_input_size((48, 48))
    report = load_weights(model, path)
    assert [entry[1:] for entry in report.resized] == [((1, 17, 32), (1, 37, 32))]
    assert any("resized from (1, 17, 32) to (1, 37, 32)" in line for line in report.lines())
    same(model, timm, images(side=48))


def test_a_head_of_other_classes_stays_as_initialised(save):
    model = our_vit(num_classes=3)
    before = model.head.weight.clone()
    report = load_weights(model, save(timm_vit().state_dict()))
    assert report.replaced == ["head.weight", "head.bias"] and report.share == 1 and not report.missing
    assert torch.equal(model.head.weight, before)
    assert "head left as initialised: head.weight [file (7, 32), model (3, 32)]" in "\n".join(report.lines())


def test_a_linear_head_for_another_kind_of_head(save):
    source = random(build_model("timm:test_convnext", num_classes=7))
    model = build_model("timm:test_convnext", num_classes=7, head="mlp", head_dim=8)
    report = load_weights(model, save(source.state_dict()))
    assert report.share == 1 and not report.missing
    assert report.replaced == [f"head.fc.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias")]
    assert report.unexpected == ["head.fc.weight", "head.fc.bias"]


def test_a_head_of_as_many_other_classes_is_loaded(save):
    assert "head.weight" in load_weights(our_vit(), save(timm_vit().state_dict())).loaded


def test_a_grey_model_sums_the_channels(save):
    source, model = timm_vit(), our_vit(in_chans=1)
    report = load_weights(model, save(source.state_dict()))
    assert any("summed over the image's channels" in line for line in report.lines())
    grey = images(chans=1)
    with torch.no_grad():
        torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_other_channels_are_refused(save):
    model = our_vit(in_chans=4)
    with pytest.raises(UserError, match=r"patch_embed.proj.weight takes 3 channels, model.in_chans = 4; use 3"):
        load_weights(model, save(timm_vit().state_dict()))


def test_less_than_half_is_an_error_and_changes_nothing(save):
    model = our_vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half = {n: v for n, v in timm_vit().state_dict().items() if "mlp" not in n}
    error = r"fits \d+% of the model's .* missing \(.*; give weights of the same"
    for state in (half, torchvision.models.squeezenet1_1().state_dict(), timm_vit(embed_dim=64).state_dict()):
        with pytest.raises(UserError, match=error) as caught:
            load_weights(model, save(state))
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_values_that_are_not_finite_are_refused(save):
    source = timm_vit().state_dict()
    source["norm.bias"][3] = float("nan")
    with pytest.raises(UserError, match="norm.bias contains values that are not finite"):
        load_weights(our_vit(), save(source))


def test_half_precision_files(save):
    source, model = timm_vit(), our_vit()
    load_weights(model, save({name: value.half() for name, value in source.state_dict().items()}))
    assert model.norm.weight.dtype == torch.float32
    torch.testing.assert_close(model.norm.weight, source.norm.weight.half().float())


def test_a_block_less_is_said(save):
    report = load_weights(our_vit(depth=3), save(timm_vit().state_dict()))
    assert len(report.missing) == 12
    assert any(line.startswith("weights: 12 missing: blocks.2.norm1.weight") for line in report.lines())
