"""Converts weights to a model's layout: names first, then shapes (position embeddings, position tables, channels).

A layout is recognised by its names, for the file and for the model. ViTs have five layouts: timm's, which DeiT, BEiT
and our own files use; torchvision's, which its SWAG files use; Google's (.npz); that of Hugging Face's transformers;
and mmpretrain's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from math import isqrt, prod

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from ..interface import MergingModel
from ..merging.contract import Grid
from .files import State
from .google import from_google, is_google
from .huggingface import from_huggingface, is_huggingface
from .mmpretrain import from_mmpretrain, is_mmpretrain

# A ViT's names, timm's and torchvision's: {i} is a block's number, {p} is weight or bias.
_BLOCK = "encoder.layers.encoder_layer_{i}"
_VIT = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj.{p}", "conv_proj.{p}"),
    ("blocks.{i}.norm1.{p}", f"{_BLOCK}.ln_1.{{p}}"),
    ("blocks.{i}.attn.qkv.{p}", f"{_BLOCK}.self_attention.in_proj_{{p}}"),
    ("blocks.{i}.attn.proj.{p}", f"{_BLOCK}.self_attention.out_proj.{{p}}"),
    ("blocks.{i}.norm2.{p}", f"{_BLOCK}.ln_2.{{p}}"),
    ("blocks.{i}.mlp.fc1.{p}", f"{_BLOCK}.mlp.0.{{p}}"),
    ("blocks.{i}.mlp.fc2.{p}", f"{_BLOCK}.mlp.3.{{p}}"),
    ("norm.{p}", "encoder.ln.{p}"),
    ("head.{p}", "heads.head.{p}"),
)
_TO_TORCHVISION = {timm: torchvision for timm, torchvision in _VIT}
_TO_TIMM = {torchvision: timm for timm, torchvision in _VIT}

# torchvision's published ViT and DenseNet files use older names; DeiT III's differ from timm's in the layer scale.
_OLD_TORCHVISION = {
    f"{_BLOCK}.mlp.linear_1.{{p}}": f"{_BLOCK}.mlp.0.{{p}}",
    f"{_BLOCK}.mlp.linear_2.{{p}}": f"{_BLOCK}.mlp.3.{{p}}",
}
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)")
_LAYER_SCALE = {"blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma", "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma"}

_TABLE = "relative_position_bias_table"
RESIZED = "resized"


def of_libraries(state: State) -> State:
    """Returns a state of Hugging Face's transformers or of mmpretrain with timm's names, any other unchanged."""
    if is_huggingface(state):
        return from_huggingface(state)
    return from_mmpretrain(state) if is_mmpretrain(state) else state


def renamed(state: State, model: nn.Module) -> State:
    """Returns `state` with the names of `model`'s layout; names of no known layout are left unchanged."""
    wanted = model.state_dict().keys()
    if is_google(state):
        state = from_google(state)
    state = _rename(state, _OLD_TORCHVISION)
    state = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    if _is_torchvision_vit(state.keys()) and _is_timm_vit(wanted):
        state = _rename(state, _TO_TIMM)
    elif _is_timm_vit(state.keys()) and _is_torchvision_vit(wanted):
        state = _rename(state, _TO_TORCHVISION)
    if "blocks.0.ls1.gamma" in wanted:
        state = _rename(state, _LAYER_SCALE)
    return _shared_table_to_blocks(state, wanted)


def resized(state: State, model: nn.Module) -> tuple[State, dict[str, str]]:
    """Resizes position embeddings and the first convolution for the model, if possible.

    A first convolution over three channels is summed for a model with one channel, which gives the output for a grey
    image in all three.

    Returns:
        The state, and what was done to each tensor that has another shape now, such as "resized".
    """
    own, state = model.state_dict(), dict(state)
    done: dict[str, list[str]] = {}
    for name, token in (("pos_embed", "cls_token"), ("encoder.pos_embedding", "class_token")):
        if name in state and name in own and (grid := _grid(model)) is not None:
            prefix = own[name].shape[1] - prod(grid)
            moved = _move_class_position(state, name, token, prefix)
            positions = _positions(state[name], own[name], grid, prefix)
            done[name] = [moved] * bool(moved) + [RESIZED] * (positions is not state[name])
            state[name] = positions
    if (name := first_conv(model)) in state and own[name].shape[1] == 1 and state[name].shape[1:2] == (3,):
        state[name] = state[name].sum(dim=1, keepdim=True)
        done[name] = ["summed over the image's channels"]
    return state, {name: " and ".join(steps) for name, steps in done.items() if steps}


def filtered(state: State, model: nn.Module) -> State | None:
    """Applies timm's own filter for the published files of a model; returns None if there is none or it fails.

    These filters rename the entries of official files and resize relative position tables and patch embeddings.
    """
    module = type(model).__module__
    take = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if take is None:
        return None
    # timm's filters look up the module of each table in the model, and fail for tables that the model does not have.
    own = model.state_dict().keys()
    other_tables = {name: value for name, value in state.items() if name.endswith(_TABLE) and name not in own}
    try:
        with torch.no_grad():
            converted = take({name: value for name, value in state.items() if name not in other_tables}, model)
    except Exception:  # filters are written for their own files, and fail in any way for others
        return None
    return {**converted, **other_tables}


def first_conv(model: nn.Module) -> str:
    """Returns the name of the weight of the first convolution, which sees the image; empty if there is none."""
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next((f"{name}.weight" for name in names), "")


def _rename(state: State, table: dict[str, str]) -> State:
    patterns = []
    for old, new in table.items():
        pattern = re.escape(old).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)")
        patterns.append((re.compile(pattern), new))

    def name_of(name: str) -> str:
        matches = ((pattern.fullmatch(name), new) for pattern, new in patterns)
        return next((new.format(**match.groupdict()) for match, new in matches if match), name)

    return {name_of(name): value for name, value in state.items()}


def _is_timm_vit(names: Collection[str]) -> bool:
    return "blocks.0.attn.qkv.weight" in names


def _is_torchvision_vit(names: Collection[str]) -> bool:
    return "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in names


def _shared_table_to_blocks(state: State, wanted: Collection[str]) -> State:
    """Copies BEiT's relative position table, which all blocks share before fine-tuning, to each block."""
    shared, table = f"rel_pos_bias.{_TABLE}", f"attn.{_TABLE}"
    if shared not in state or shared in wanted or f"blocks.0.{table}" not in wanted:
        return state
    blocks = [name for name in wanted if name.endswith(table)]
    rest = {name: value for name, value in state.items() if name != shared}
    return {**{name: state[shared] for name in blocks}, **rest}


def _move_class_position(state: State, name: str, token: str, prefix: int) -> str:
    """Gives the class token a position of zero, or adds its position to it, where only one side has a place for it.

    timm's `no_embed_class` embeds the positions of patches alone.

    Args:
        state: changed in place.
        name: of the position embeddings (1, P + N, D).
        token: the name of the class token (1, 1, D).
        prefix: P of the model, the number of tokens before the patches that have positions.

    Returns:
        What was done to the position embeddings; "" if nothing.
    """
    old = state[name]
    if token not in state or old.ndim != 3 or state[token].shape != old[:, :1].shape:
        return ""
    if prefix == 1 and _is_square(old.shape[1]):
        state[name] = torch.cat([torch.zeros_like(old[:, :1]), old], dim=1)
        return "extended by a position of zero for the class token"
    if prefix == 0 and _is_square(old.shape[1] - 1):
        state[token], state[name] = state[token] + old[:, :1], old[:, 1:]
        return "shortened by the class token's, which is added to the token,"
    return ""


def _positions(old: Tensor, new: Tensor, grid: Grid, prefix: int) -> Tensor:
    """Resizes position embeddings (1, P + N, D) to another grid; returns them unchanged if that is not possible."""
    sizes = old.ndim == new.ndim == 3 and old.shape[::2] == new.shape[::2] and _is_square(old.shape[1] - prefix)
    if not sizes or old.shape == new.shape:
        return old
    return resample_abs_pos_embed(old, new_size=list(grid), num_prefix_tokens=prefix)


def _is_square(n: int) -> bool:
    return n > 0 and isqrt(n) ** 2 == n


def _grid(model: nn.Module) -> Grid | None:
    """Returns rows and columns of the patches for which a ViT has position embeddings; None if unknown."""
    if isinstance(model, TorchvisionViT):
        side = model.image_size // model.patch_size
        return side, side
    if isinstance(model, MergingModel):
        return model.grid
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)  # timm's models
    return grid if isinstance(grid, tuple) else None
