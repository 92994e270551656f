"""Files of OpenMMLab's mmpretrain, and of mmcls before it (ViT, DeiT, MAE): converts their names to timm's."""

from __future__ import annotations

import re

from .files import State

_FIRST = re.compile(r"(.*?)layers\.0\.ffn\.layers\.0\.0\.weight")  # a name that only these files have
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")

_NAMES = {
    "patch_embed.projection": "patch_embed.proj",
    "pre_norm": "norm_pre",
    "ln1": "norm",
    "ln2": "fc_norm",  # of a model that averages its patches
}
_HEADS = {"head.layers.head": "head", "head.fc": "head", "head.layers.head_dist": "head_dist"}
_PARTS = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}
_SCALES = {"attn.gamma1.weight": "ls1.gamma", "ffn.gamma2.weight": "ls2.gamma"}


def is_mmpretrain(state: State) -> bool:
    """Returns whether a file is one of mmpretrain's ViTs."""
    return _root(state) is not None


def from_mmpretrain(state: State) -> State:
    """Converts a ViT from mmpretrain's names to timm's. Names that timm does not have, such as a decoder's, stay."""
    root = _root(state) or ""
    return {_renamed(name.removeprefix(root)): value for name, value in state.items()}


def _root(state: State) -> str | None:
    """What stands before the ViT's names, such as "backbone."; None: this is no file of mmpretrain."""
    return next((match[1] for name in state if (match := _FIRST.fullmatch(name))), None)


def _renamed(name: str) -> str:
    part, _, kind = name.rpartition(".")
    if known := {**_NAMES, **_HEADS}.get(part):
        return f"{known}.{kind}"
    if match := _BLOCK.fullmatch(name):
        number, inner = match.groups()
        part, _, kind = inner.rpartition(".")
        return f"blocks.{number}.{_SCALES.get(inner) or f'{_PARTS.get(part, part)}.{kind}'}"
    return name
