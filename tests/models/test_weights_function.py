"""A model computes what the file's network computes, to 1e-5, or the file is refused with what does not fit."""

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva

from models import UserError, build_model
from models.weights import Report, load_weights
from models.weights.faults import taken
from models.weights.takers import takers
from tests.models.weight_files import (
    TINY,
    distilled,
    images,
    our_vit,
    random,
    same,
    timm_beit,
    timm_vit,
    torchvision_vit,
)


def refusal(model, source):
    """The line by which a network's weights are refused; the model stays as it is."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, "FILE", dict(source.state_dict()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    line = str(caught.value)
    assert line.startswith("model.weights = 'FILE': ") and "\n" not in line
    return line


SAME = {
    "layer scale": {"init_values": 0.1},
    "no class position": {"no_embed_class": True},
    "DeiT III": {"init_values": 0.1, "no_embed_class": True},
    "no query, key, value biases": {"qkv_bias": False},
    "no biases of projections": {"proj_bias": False},
}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME)
@pytest.mark.parametrize("target", [our_vit, lambda: timm_vit(seed=2), lambda: torchvision_vit(2)])
def test_what_can_be_converted_exactly(options, target):
    source, model = timm_vit(**options), target()
    report = load_weights(model, "FILE", dict(source.state_dict()))
    assert report.share == 1 and not report.missing + report.unexpected + report.replaced
    with torch.no_grad():
        torch.testing.assert_close(model(images()), source(images()), atol=2e-6, rtol=2e-6)


def test_layer_scale_is_said_and_exact_for_16_bit_files():
    source, model = timm_vit(init_values=0.1), our_vit()
    state = {name: value.bfloat16() for name, value in source.state_dict().items()}
    lines = load_weights(model, "FILE", state).lines()
    assert "weights: 4 layer scales multiplied into attn.proj and mlp.fc2, the same function" in lines
    rounded = timm_vit(init_values=0.1)
    rounded.load_state_dict({name: value.float() for name, value in state.items()})
    same(model, rounded)


def test_layer_scale_by_deits_names_into_a_hybrid():
    cnn = {"block": "convnext", "depth": 1, "dim": 16}
    source, model = timm_vit(init_values=0.1), build_model("hybrid", **TINY, num_classes=7, cnn=cnn, stem="patch")
    names = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    state = {}
    for name, value in source.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value
    assert load_weights(model, "FILE", state).folded == 4
    same(model, source)


def test_layer_scale_of_a_conformers_blocks():
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "channel_ratio": 1}
    source, model = (random(build_model("conformer", **options, num_classes=5), seed) for seed in (0, 1))
    state = {name: value.clone() for name, value in source.state_dict().items()}
    gamma = torch.rand(24) + 0.5
    for name in ("attn.proj.weight", "attn.proj.bias"):
        full = f"conv_trans_2.trans_block.{name}"
        state[full] = state[full] / gamma.view(-1, *[1] * (state[full].ndim - 1))
    state["conv_trans_2.trans_block.ls1.gamma"] = gamma
    load_weights(model, "FILE", state)
    same(model, source)


def test_a_class_position_is_added_to_the_class_token_of_a_model_without_one():
    source, model = timm_vit(), timm_vit(seed=2, no_embed_class=True)
    report = load_weights(model, "FILE", dict(source.state_dict()))
    assert report.share == 1 and "pos_embed shortened by the class token's, which is added" in report.lines()[1]
    same(model, source)
    report = load_weights(source, "FILE", dict(model.state_dict()))
    assert "extended by a position of zero for the class token from (1, 16, 32) to (1, 17, 32)" in report.lines()[1]
    same(model, source)


def test_no_class_position_on_another_grid():
    source, model, timm = (
        timm_vit(no_embed_class=True),
        our_vit(img_size=48),
        timm_vit(seed=3, img_size=48, no_embed_class=True),
    )
    load_weights(timm, "FILE", dict(source.state_dict()))
    report = load_weights(model, "FILE", dict(source.state_dict()))
    how = "extended by a position of zero for the class token and resized from (1, 16, 32) to (1, 37, 32)"
    assert f"weights: pos_embed {how}" in report.lines()
    same(model, timm, images(side=48))


# options of timm's ViT -> what the line names
OTHERS = {
    "more blocks": ({"depth": 4}, "24 without a place in the model (blocks.2.norm1.weight", "use model.depth=4"),
    "normalised queries": ({"qk_norm": True}, "blocks.0.attn.q_norm.weight", "the network that they were trained with"),
    "norm before the blocks": ({"pre_norm": True}, "norm_pre.weight", ""),
    "norm after pooling": ({"global_pool": "avg"}, "(fc_norm.weight, fc_norm.bias)", "(norm.weight, norm.bias)"),
    "no class token": ({"class_token": False, "global_pool": "avg"}, "cls_token", "pos_embed [file (1, 16, 32)"),
    "no class token, no norm": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "cls_token", ""),
    "registers": ({"reg_tokens": 4}, "reg_token", ""),
    "registers without positions": ({"reg_tokens": 4, "no_embed_class": True}, "reg_token", ""),
    "attention pooling": ({"global_pool": "map"}, "attn_pool.latent", ""),
    "no positions": ({"pos_embed": "none"}, "1 missing in the file (pos_embed)", ""),
    "no final norm": ({"final_norm": False}, "missing in the file (norm.weight, norm.bias)", ""),
    "norm in attention": ({"scale_attn_norm": True}, "blocks.0.attn.norm.weight", ""),
    "norm in the MLP": ({"scale_mlp_norm": True}, "blocks.0.mlp.norm.weight", ""),
    "narrow gated MLP": (
        {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2.5},
        "fc1.weight [file (80",
        "the network that they",
    ),
    "gated MLP": ({"mlp_layer": SwiGLUPacked}, "blocks.0.mlp.fc2.weight [file (32, 64), model (32, 128)]", ""),
    "norm of patches": ({"embed_norm_layer": torch.nn.LayerNorm}, "patch_embed.norm.weight", ""),
    "smaller patches": ({"patch_size": 4}, "patch_embed.proj.weight [file (32, 3, 4, 4)", "use model.patch_size=4"),
    "a narrower MLP": ({"mlp_ratio": 3.5}, "mlp.fc1.weight [file (112, 32)", "use model.mlp_ratio=3.5"),
    "wider tokens": ({"embed_dim": 128}, "fits 0%", "use model.embed_dim=128 model.num_heads=2"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_function_is_refused(case):
    options, *words = OTHERS[case]
    source, model = timm_vit(**options), timm_vit(seed=9, **options)
    line = refusal(our_vit(), source)
    assert all(word in line for word in words), line
    report = load_weights(model, "FILE", dict(source.state_dict()))  # the same network takes them
    assert report.share == 1 and not report.missing + report.unexpected
    same(model, source)


def test_other_families_are_refused():
    rope = {"qkv_bias": False, "use_rot_pos_emb": True, "embed_dim": 32, "depth": 2, "num_heads": 2}
    for source, word in (
        (distilled(), "dist_token"),
        (timm_beit(use_rel_pos_bias=True), "blocks.0.attn.q_bias"),
        (timm_beit(use_shared_rel_pos_bias=True), "rel_pos_bias.relative_position_bias_table"),
        (random(Eva(img_size=32, patch_size=8, num_classes=7, **rope)), "fc_norm.weight"),
    ):
        assert word in refusal(our_vit(), source)


LACKING = {
    "layer scale": {"init_values": 0.1},
    "normalised queries": {"qk_norm": True},
    "norm before the blocks": {"pre_norm": True},
    "registers": {"reg_tokens": 4},
}


@pytest.mark.parametrize("options", LACKING.values(), ids=LACKING)
def test_a_file_that_lacks_a_part_of_the_models_blocks(options):
    assert "missing in the file" in refusal(timm_vit(seed=2, **options), timm_vit())


def test_residual_networks():
    narrow, squeezed = (timm.create_model("test_resnet", num_classes=3) for _ in range(2))
    squeezed.layer1[0].se = torch.nn.Conv2d(16, 16, 1)
    assert "(layer1.0.se.weight, layer1.0.se.bias)" in refusal(narrow, squeezed)
    assert "missing in the file (layer1.0.se.weight, layer1.0.se.bias)" in refusal(squeezed, narrow)


def test_a_model_of_timm_that_takes_the_weights_is_named():
    model = build_model("vit", embed_dim=192, num_heads=3, depth=12)
    source = timm.create_model("deit_tiny_distilled_patch16_224")
    assert refusal(model, source).endswith("use model.name=timm:deit_tiny_distilled_patch16_224, which takes them")


def test_the_model_of_timm_has_the_files_own_size():
    model = build_model("vit", embed_dim=512, num_heads=8, depth=12)
    line = refusal(model, timm.create_model("vit_medium_patch16_gap_256"))
    assert line.endswith("use model.name=timm:vit_medium_patch16_gap_256, which takes them")


def test_models_that_differ_in_their_activation_alone_are_all_named(monkeypatch):
    pair = ["vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"]
    monkeypatch.setattr(timm, "list_models", lambda _: [*pair, "vit_base_patch32_224", "vit_base_patch32_clip_256"])
    with torch.device("meta"):
        state = timm.create_model(pair[1]).state_dict()
    assert takers(state, taken) == pair


def test_decoders_and_mask_tokens_stay_out():
    state = dict(timm_vit().state_dict())
    beside = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_embed.weight": torch.zeros(16, 32),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
        "blocks.0.attn.total_ops": torch.zeros(1),
    }
    model = our_vit()
    assert load_weights(model, "FILE", state | beside).unexpected == list(beside)
    same(model, timm_vit())


def test_what_only_training_uses_stays_out():
    beside = {
        "epoch": torch.tensor(3),
        "optimizer.exp_avg": torch.zeros(3),
        "loss_fn.weight": torch.zeros(7),
        "logit_scale": torch.tensor(4.6),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    model = our_vit()
    assert load_weights(model, "FILE", dict(timm_vit().state_dict()) | beside).unexpected == list(beside)
    same(model, timm_vit())


def test_parts_beside_the_backbone_stay_out():
    state = {f"backbone.{name}": value for name, value in timm_vit().state_dict().items() if "head" not in name}
    beside = {"neck.0.weight": torch.zeros(3, 3), "dino_head.mlp.0.weight": torch.zeros(9, 32)}
    model = our_vit()
    report = load_weights(model, "FILE", state | beside)
    assert sorted(report.unexpected) == sorted(beside) and report.replaced == ["head.weight", "head.bias"]


def test_adapters_are_refused():
    state = {}
    for name, value in timm_vit().state_dict().items():
        if "attn.qkv" in name:
            path, _, kind = name.rpartition(".")
            state[f"base_model.model.{path}.base_layer.{kind}"] = value
            state[f"base_model.model.{path}.lora_A.default.weight"] = torch.zeros(4, 32)
            state[f"base_model.model.{path}.lora_B.default.weight"] = torch.zeros(96, 4)
        else:
            state[f"base_model.model.{name}"] = value
    with pytest.raises(UserError, match="is a LoRA adapter, .* save the model after peft's merge_and_unload"):
        load_weights(our_vit(), "FILE", state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_quantised_values_are_no_weights(dtype):
    state = dict(timm_vit().state_dict())
    state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].to(dtype)
    with pytest.raises(UserError, match=r"1 not of floating-point numbers with 16 bits or more \(blocks.1.mlp.fc1.w"):
        load_weights(our_vit(), "FILE", state)


def test_shares_are_not_rounded_up():
    report = Report("FILE", share=0.9999)
    assert "99.9% of the parameters" in report.lines()[0]


def test_the_number_of_heads_is_said(tmp_path):
    torch.save(timm_vit().state_dict(), tmp_path / "a.pth")
    (line,) = [line for line in load_weights(our_vit(), str(tmp_path / "a.pth")).lines() if "attention heads" in line]
    assert "2 of 16 channels" in line
