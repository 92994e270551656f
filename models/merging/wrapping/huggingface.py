"""The vision models of Hugging Face's transformers that `wrap` supports: ViT, DeiT, DINOv2 (with registers), DINOv3,
and the image towers of CLIP and SigLIP.

All their blocks are a norm, attention by four projections, a norm and an MLP; they differ in names, in layer scale and
dropout, and in DINOv3's rotary positions. This module is imported when a model of transformers is first wrapped.

Outputs keep their form: `last_hidden_state` and every one of `hidden_states` has a row for each patch, which is that of
the token that the patch is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import attend
from ...settings import UserError
from ..contract import Grid, Removal
from ..layer import Attended, MergeLayer, Scores
from ..tokens import Tokens
from .kinds import Family, Kind
from .rotary import mean_rotation, rotated

# Arguments that blocks are given and do not use: the model collects hidden states by hooks, and computes the loss.
IGNORED = frozenset({"output_hidden_states", "num_items_in_batch"})


@dataclass(frozen=True)
class Parts:
    """The names of a block's parts."""

    norm1: str
    attention: str
    out: str  # the attention's last projection
    norm2: str
    after_attention: tuple[str, ...] = ()  # called one after another with what the attention returned
    after_mlp: tuple[str, ...] = ()


_DINO = Parts("norm1", "attention", "o_proj", "norm2", ("layer_scale1", "drop_path"), ("layer_scale2", "drop_path"))
_VIT = Parts("layernorm_before", "attention", "o_proj", "layernorm_after", ("dropout",), ("dropout",))
_CLIP = Parts("layer_norm1", "self_attn", "out_proj", "layer_norm2")


@dataclass(frozen=True)
class Entry:
    """A model of transformers: its module, the start of its classes' names, and where it keeps what merging needs."""

    module: str
    models: tuple[str, ...]  # the classes of the models
    start: str  # of the names of its layer and its attention
    blocks: str
    parts: Parts
    layer: str = "Layer"
    prefix: Callable[[Any], int] = lambda config: 1
    class_token: bool = True
    any_size: bool = False  # whether it takes images of any size


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


ENTRIES = (
    Entry("vit", ("ViTModel",), "ViT", "layers", _VIT),
    Entry("deit", ("DeiTModel",), "DeiT", "layers", _VIT, prefix=lambda config: 2),
    Entry("dinov2", ("Dinov2Model", "Dinov2Backbone"), "Dinov2", "encoder.layer", _DINO, any_size=True),
    Entry(
        "dinov2_with_registers",
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersBackbone"),
        "Dinov2WithRegisters",
        "encoder.layer",
        _DINO,
        prefix=_registers,
        any_size=True,
    ),
    Entry(
        "dinov3_vit",
        ("DINOv3ViTModel", "DINOv3ViTBackbone"),
        "DINOv3ViT",
        "model.layer",
        _DINO,
        prefix=_registers,
        any_size=True,
    ),
    Entry("clip", ("CLIPVisionModel",), "CLIP", "encoder.layers", _CLIP, layer="EncoderLayer"),
    Entry(
        "siglip",
        ("SiglipVisionModel",),
        "Siglip",
        "encoder.layers",
        _CLIP,
        layer="EncoderLayer",
        prefix=lambda config: 0,
        class_token=False,
    ),
)


def tables() -> Iterator[tuple[type[nn.Module], Family, type[nn.Module], Kind]]:
    """Yields each model's class and family, and its blocks' class and kind, if the installed version has them."""
    for entry in ENTRIES:
        try:
            module = import_module(f"transformers.models.{entry.module}.modeling_{entry.module}")
        except ImportError:
            continue
        layer, attention = (getattr(module, entry.start + name, None) for name in (entry.layer, "Attention"))
        for name in entry.models:
            model = getattr(module, name, None)
            if model is not None and layer is not None and attention is not None:
                yield model, _family(entry), layer, _kind(entry.parts, attention)


def _family(entry: Entry) -> Family:
    def layout(model: Any) -> Callable[[], tuple[Grid | None, bool]]:
        (height, width), (rows, columns) = _sides(model.config.image_size), _sides(model.config.patch_size)
        return lambda: ((height // rows, width // columns), not entry.any_size)

    return Family(
        blocks=entry.blocks,
        width=lambda model: model.config.hidden_size,
        prefix=lambda model: entry.prefix(model.config),
        class_token=lambda model: entry.class_token,
        layout=layout,
        image_size=lambda model: _sides(model.config.image_size),
    )


def _sides(size: Any) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _kind(parts: Parts, attention: type[nn.Module]) -> Kind:
    mine = {parts.norm1, parts.attention, parts.norm2, "mlp", *parts.after_attention, *parts.after_mlp}
    return Kind(
        run=_block(parts),
        attention=(parts.attention, (attention,)),
        parts=frozenset(mine),
        attention_parts=frozenset({"q_proj", "k_proj", "v_proj", parts.out}),
        head_dim=lambda attn: attn.head_dim,
        options=IGNORED | {"position_embeddings"},
        positional=("attention_mask",),
    )


def _block(parts: Parts) -> Callable[..., tuple[Tensor, Tokens]]:
    """Returns the equations of a block: x + attention(norm x), then x + MLP(norm x), with merging in between."""

    def run(
        block: Any,
        x: Tensor,
        tokens: Tokens,
        r: Removal,
        merge: MergeLayer,
        bias: Tensor | None,
        *,
        own: bool,
        **options: Any,
    ) -> tuple[Tensor, Tokens]:
        source = getattr(block, parts.norm1)(x)
        out, attended = _attention(getattr(block, parts.attention), parts.out, source, tokens, bias, own, options)
        for name in parts.after_attention:
            out = getattr(block, name)(out)
        x = out + x
        x, tokens = merge(x, tokens, r, attended)
        out = block.mlp(getattr(block, parts.norm2)(x))
        for name in parts.after_mlp:
            out = getattr(block, name)(out)
        return out + x, tokens

    return run


def _attention(
    attn: Any, last: str, source: Tensor, tokens: Tokens, bias: Tensor | None, own: bool, options: dict[str, Any]
) -> tuple[Tensor, Attended]:
    """Attention of source (B, T, C): its output (B, T, C), and what it is computed from."""

    def projected() -> tuple[Scores, Tensor]:
        layers = (attn.q_proj, attn.k_proj, attn.v_proj)
        q, k, v = (layer(source).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for layer in layers)
        if "position_embeddings" not in options:
            return Scores(q, k, bias, v=v), v
        cosine, sine = options["position_embeddings"]
        prefix = tokens.index.shape[1] - sine.shape[-2]
        rotation = mean_rotation(torch.cat([sine, cosine], dim=-1), tokens, prefix)
        turned, rotated_keys = (rotated(part, rotation, prefix, half=True).to(v.dtype) for part in (q, k))
        return Scores(turned, rotated_keys, bias, k, v), v

    if not own and getattr(attn.config, "output_attentions", False):
        raise UserError("output_attentions: does not follow merged tokens; set it to False in the model's config")
    if own:
        out, _ = attn(source, **{"attention_mask": None, **options})
        return out, Attended(source, lambda: projected()[0])
    scores, v = projected()
    dropout = attn.attention_dropout if hasattr(attn, "attention_dropout") else attn.dropout
    out = attend(scores.q, scores.k, v, bias, dropout if attn.training else 0.0)
    return getattr(attn, last)(out), Attended(source, lambda: scores)
