"""Small models of every family that merging wraps, and what their tests ask of them."""

from inspect import signature
from unittest.mock import patch

import pytest
import torch
from timm.models import beit, eva, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import vision_transformer as torchvision_vit

from models.merging.wrapping import MergingBlocks
from models.merging.wrapping.families import family_of

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
PATCHES = 16
BEIT = {**TINY, "init_values": 0.5}
ROTATED = {**TINY, "use_rot_pos_emb": True}
REGISTERS = {"num_reg_tokens": 2, "no_embed_class": True, "use_abs_pos_emb": False, "init_values": 0.5}
DINOV3 = {**ROTATED, **REGISTERS, "attn_type": "rope"}


def torchvision_tiny(depth=3, **options):
    return torchvision_vit.VisionTransformer(
        image_size=32, patch_size=8, num_layers=depth, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5, **options
    )


MODELS = {
    "deit": lambda **o: VisionTransformer(**{**TINY, **o}),
    "deit3": lambda **o: VisionTransformer(**{**TINY, **o}, init_values=0.5, no_embed_class=True),
    "distilled": lambda **o: VisionTransformerDistilled(**{**TINY, **o}),
    "clip": lambda **o: VisionTransformer(**{**TINY, **o}, pre_norm=True, act_layer="quick_gelu"),
    "registers": lambda **o: VisionTransformer(**{**TINY, **o}, reg_tokens=3, no_embed_class=True, init_values=0.5),
    "average": lambda **o: VisionTransformer(**{**TINY, **o}, class_token=False, global_pool="avg"),
    "map": lambda **o: VisionTransformer(**{**TINY, **o}, class_token=False, global_pool="map", reg_tokens=1),
    "qk_norm": lambda **o: VisionTransformer(**{**TINY, **o}, qk_norm=True, drop_path_rate=0.2),
    "post_norm": lambda **o: VisionTransformer(**{**TINY, **o}, block_fn=vision_transformer.ResPostBlock),
    "beit": lambda **o: beit.Beit(**{**BEIT, **o}, use_rel_pos_bias=True, use_abs_pos_emb=False),
    "beit_shared": lambda **o: beit.Beit(**{**BEIT, **o}, use_shared_rel_pos_bias=True, global_pool="token"),
    "beit_both": lambda **o: beit.Beit(**{**TINY, **o}, use_rel_pos_bias=True, use_shared_rel_pos_bias=True),
    "eva": lambda **o: eva.Eva(**{**TINY, **o}, init_values=0.5),
    "eva02": lambda **o: eva.Eva(**{**ROTATED, **o}, swiglu_mlp=True, scale_mlp=True, qkv_fused=False),
    "eva_norms": lambda **o: eva.Eva(**{**ROTATED, **o}, use_post_norm=True, scale_attn_inner=True),
    "torchvision": torchvision_tiny,
}
if "rope_type" in signature(eva.Eva).parameters:  # newer versions of timm
    MODELS["dinov3"] = lambda **o: eva.Eva(**{**DINOV3, **o}, rope_type="dinov3", rope_rotate_half=True)
    MODELS["rope_mixed"] = lambda **o: eva.Eva(**{**DINOV3, **o}, rope_type="mixed")
# Options of a family's model that switch its dropout on.
DROPOUT = {name: {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3} for name in MODELS} | {
    "qk_norm": {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3},
    "torchvision": {"dropout": 0.3, "attention_dropout": 0.3},
}
ALL = pytest.mark.parametrize("name", MODELS)


def built(name="deit", seed=0, **options):
    """A model without a zero anywhere: tables, biases and heads that start at zero would hide mistakes."""
    torch.manual_seed(seed)
    model = MODELS[name](**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def arguments_of_blocks(model):
    """What a model gives each of its blocks besides tokens, block by block: its shared positions."""
    given = {}
    if getattr(model, "rel_pos_bias", None) is not None:
        given = {"shared_rel_pos_bias": model.rel_pos_bias()}
    if getattr(model, "rope", None) is not None:
        rope = model.rope.get_embed()
        if getattr(model, "rope_mixed", False):
            return [{"rope": part} for part in rope]
        given = {"rope": rope}
    return [given] * len(container(model))


def container(model):
    return model.get_submodule(family_of(model).blocks)


def prefix_of(model):
    return getattr(model, "num_prefix_tokens", 1)


def after_blocks(run):
    """What each block of a wrapped model put out, (x, tokens), in one call of `run`, before it was unmerged."""
    true, seen = MergingBlocks.run, []

    def recorded(*given, **options):
        seen.append(true(*given, **options))
        return seen[-1]

    with patch.object(MergingBlocks, "run", recorded):
        result = run()
    return result, seen


def gradients(model):
    model.zero_grad()
    model.train()(images()).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
