"""Files of Hugging Face's transformers (ViT, DeiT, DINOv2): converts their names to timm's."""

from __future__ import annotations

import re

import torch

from .files import State

_FIRST = "embeddings.cls_token"  # a name that only these files have; before it, the name of a part, such as "vit."
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.([^.]+)")

_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HEADS = {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist"}
_PARTS = {
    "attention.attention.query": "attn.query",
    "attention.attention.key": "attn.key",
    "attention.attention.value": "attn.value",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}


def is_huggingface(state: State) -> bool:
    """Returns whether a file is one of transformers' ViTs."""
    return _root(state) is not None


def from_huggingface(state: State) -> State:
    """Converts a ViT, DeiT or DINOv2 from transformers' names to timm's: queries, keys and values become one layer.

    Names that timm does not have, such as the mask token and the pooler, stay as they are.
    """
    root, found = _root(state) or "", {}
    for name, value in state.items():
        found[_renamed(name.removeprefix(root) if name.startswith(root) else name)] = value
    for name in [name for name in found if ".attn.query." in name]:
        parts = [name.replace(".attn.query.", f".attn.{part}.") for part in ("query", "key", "value")]
        if all(part in found for part in parts):
            found[name.replace(".attn.query.", ".attn.qkv.")] = torch.cat([found.pop(part) for part in parts])
    return found


def _root(state: State) -> str | None:
    """What stands before the ViT's names; None: this is no file of transformers."""
    of_blocks = any("encoder.layer." in name for name in state)
    return next((name.removesuffix(_FIRST) for name in state if of_blocks and name.endswith(_FIRST)), None)


def _renamed(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    head, _, kind = name.rpartition(".")
    if head in _HEADS:
        return f"{_HEADS[head]}.{kind}"
    if match := _BLOCK.fullmatch(name):
        number, part, kind = match.groups()
        kind = "gamma" if kind == "lambda1" else kind
        return f"blocks.{number}.{_PARTS.get(part, part)}.{kind}"
    return name
