"""The families of ViTs that `wrap` supports, and their kinds of blocks, in timm and torchvision.

A new family is an entry in FAMILIES; a new kind of block is an entry in KINDS and its equations in equations.py.
docs/merging.md adds one as an example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import beit, eva, vision_transformer
from torch import nn
from torchvision.models import vision_transformer as torchvision_vit

from ...settings import UserError
from ..contract import Grid
from .equations import beit_block, post_norm_block, torchvision_block, vit_block
from .kinds import Family, Kind
from .refusals import check_by_weight, why_not
from .rotary import eva_block, eva_post_norm_block

TimmAttention = vision_transformer.Attention  # type: ignore[attr-defined]  # newer versions re-export it


def _timm_layout(patch_embed: Any) -> tuple[Grid | None, bool]:
    if patch_embed.grid_size is None:
        return None, False
    rows, columns = patch_embed.grid_size
    return (rows, columns), getattr(patch_embed, "strict_img_size", False)


def _fixed_layout(side: int) -> tuple[Grid, bool]:
    return (side, side), True


FAMILIES: dict[type[nn.Module], Family] = {
    vision_transformer.VisionTransformer: Family(
        blocks="blocks",
        width=lambda model: model.embed_dim,
        prefix=lambda model: model.num_prefix_tokens,
        class_token=lambda model: model.has_class_token,
        # Evaluated on every call, since set_input_size changes it.
        layout=lambda model: partial(_timm_layout, model.patch_embed),
        image_size=lambda model: model.patch_embed.img_size,
    ),
    beit.Beit: Family(
        blocks="blocks",
        width=lambda model: model.embed_dim,
        prefix=lambda model: model.num_prefix_tokens,
        class_token=lambda model: True,
        layout=lambda model: partial(_timm_layout, model.patch_embed),
        image_size=lambda model: model.patch_embed.img_size,
    ),
    eva.Eva: Family(
        blocks="blocks",
        width=lambda model: model.embed_dim,
        prefix=lambda model: model.num_prefix_tokens,
        class_token=lambda model: model.cls_token is not None,
        layout=lambda model: partial(_timm_layout, model.patch_embed),
        image_size=lambda model: model.patch_embed.img_size,
    ),
    torchvision_vit.VisionTransformer: Family(
        blocks="encoder.layers",
        width=lambda model: model.hidden_dim,
        prefix=lambda model: 1,
        class_token=lambda model: True,
        layout=lambda model: partial(_fixed_layout, model.image_size // model.patch_size),
        image_size=lambda model: (model.image_size, model.image_size),
    ),
}


def from_transformers(cls: type) -> bool:
    """Whether a class is one of Hugging Face's transformers, or derived from one."""
    return any(base.__module__.startswith("transformers.") for base in cls.__mro__)


def read_transformers() -> None:
    """Adds the models of transformers to the tables. It imports them, so it is called when one is to be wrapped."""
    if any(from_transformers(known) for known in FAMILIES):
        return
    from .huggingface import tables

    for model, family, layer, kind in tables():
        FAMILIES[model], KINDS[layer] = family, kind


def served() -> str:
    """Returns the classes in FAMILIES, each with the package that it is from; those of transformers in short."""
    listed = [cls for cls in FAMILIES if not from_transformers(cls)]
    names = ", ".join(f"{cls.__module__.partition('.')[0]}'s {cls.__name__}" for cls in listed)
    return f"{names}, and transformers' ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP"


def family_of(model: nn.Module) -> Family:
    """Returns the family of a model.

    Raises:
        UserError: a model of no family, or of a class with a forward of its own.
    """
    cls = type(model)
    if from_transformers(cls):
        read_transformers()
    base = next((base for base in cls.__mro__ if base in FAMILIES), None)
    if base is None:
        raise UserError(f"{cls.__name__} {why_not(cls, 'is not a model that wrap supports')}; wrap takes {served()}")
    for method in ("forward", "forward_features"):
        if getattr(cls, method, None) is not getattr(base, method, None) or method in vars(model):
            raise UserError(f"{cls.__name__} has a {method} of its own; wrap supports that of {base.__name__} alone")
    return FAMILIES[base]


_TIMM_ATTENTION = ("attn", (TimmAttention,))
_TIMM = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})


def _timm_head_dim(attn: Any) -> int:
    width: int = attn.proj.in_features  # `head_dim` is not an attribute in every version
    heads: int = attn.num_heads
    return width // heads


_EVA = _TIMM | {"q_proj", "k_proj", "v_proj", "q_bias", "v_bias"}
# Newer versions of timm have a second attention with rotary embeddings.
_EVA_ATTENTIONS = tuple(getattr(eva, name) for name in ("EvaAttention", "AttentionRope") if hasattr(eva, name))


def _eva_by_weight(attn: Any) -> str:
    separate = getattr(attn, "q_bias", None) is None or getattr(attn, "qkv_bias_separate", False)
    return "" if attn.qkv is None or separate else "qkv"


_MASKS = ("attn_mask", "is_causal")
_BLOCK = frozenset({"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"})


def _eva_kind(run: Callable[..., Any], parts: frozenset[str]) -> Kind:
    """A block of Eva with these equations and parts."""
    return Kind(
        run,
        ("attn", _EVA_ATTENTIONS),
        parts,
        _EVA,
        _timm_head_dim,
        frozenset({"rope"}),
        by_weight=_eva_by_weight,
        adaptable=("proj", "fc1", "fc2"),
        positional=("rope", *_MASKS),
    )


KINDS: dict[type[nn.Module], Kind] = {
    vision_transformer.Block: Kind(
        vit_block, _TIMM_ATTENTION, _BLOCK | {"ls1", "ls2"}, _TIMM, _timm_head_dim, positional=_MASKS
    ),
    vision_transformer.ResPostBlock: Kind(
        post_norm_block, _TIMM_ATTENTION, _BLOCK, _TIMM, _timm_head_dim, positional=_MASKS
    ),
    eva.EvaBlock: _eva_kind(eva_block, _BLOCK | {"gamma_1", "gamma_2"}),
    eva.EvaBlockPostNorm: _eva_kind(eva_post_norm_block, _BLOCK),
    beit.Block: Kind(
        beit_block,
        ("attn", (beit.Attention,)),
        _BLOCK | {"gamma_1", "gamma_2"},
        frozenset({"qkv", "q_bias", "v_bias", "relative_position_bias_table", "attn_drop", "proj", "proj_drop"}),
        _timm_head_dim,
        frozenset({"shared_rel_pos_bias"}),
        positional=("shared_rel_pos_bias", *_MASKS),
        by_weight=lambda attn: "" if attn.q_bias is None or attn.qkv_bias_separate else "qkv",
        adaptable=("proj", "fc1", "fc2"),
    ),
    torchvision_vit.EncoderBlock: Kind(
        torchvision_block,
        ("self_attention", (nn.MultiheadAttention,)),
        frozenset({"ln_1", "self_attention", "dropout", "ln_2", "mlp"}),
        frozenset({"in_proj_weight", "in_proj_bias", "out_proj"}),
        lambda attn: attn.head_dim,
        by_weight=lambda attn: "out_proj",
        adaptable=("mlp.0", "mlp.3"),
    ),
}


def own_class(block: nn.Module) -> type[nn.Module]:
    """Returns the class of a block; of one that is sharded and has `run_gathered`, by which its parameters are gathered
    around its equations, the class that it had: FSDP2 puts one of its own and FSDPModule before it."""
    return type(block).__mro__[2 if "run_gathered" in vars(block) else 0]


def kind_of(block: nn.Module, name: str) -> Kind:
    """Returns the kind of a block.

    Raises:
        UserError: a block or an attention of an unknown class, which includes subclasses of known ones, or an adapter
            where it would have no effect.
    """
    kind = KINDS.get(own_class(block))
    if kind is None:
        raise UserError(f"{name} is a {type(block).__name__}, which {why_not(type(block), 'wrap does not support')}")
    where, expected = kind.attention
    attn = getattr(block, where)
    if type(attn) not in expected:
        known = " and ".join(f"{cls.__module__}.{cls.__name__}" for cls in expected)
        raise UserError(f"{name}.{where} is a {type(attn).__name__}; wrap supports {known}")
    if kind.by_weight(attn):
        check_by_weight(attn, f"{name}.{where}", kind)
    return kind


def attention_width(block: nn.Module) -> int:
    """Width of an attention head."""
    kind = kind_of(block, "block")
    return kind.head_dim(getattr(block, kind.attention[0]))
