"""Other layouts into a model's own: names first, then shapes (position embeddings, relative position tables, channels).

Layouts are told apart by their names, on both sides. ViTs have three: timm's, which DeiT's, BEiT's and our files share;
torchvision's, which its SWAG files share; and Google's (.npz).
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

# torchvision's published ViT and DenseNet files are older than its names; DeiT III's are not timm's (layer scale).
_OLD_TORCHVISION = {
    f"{_BLOCK}.mlp.linear_1.{{p}}": f"{_BLOCK}.mlp.0.{{p}}",
    f"{_BLOCK}.mlp.linear_2.{{p}}": f"{_BLOCK}.mlp.3.{{p}}",
}
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)")
_LAYER_SCALE = {"blocks.{i}.gamma_1": "blocks.{i}.ls1.gamma", "blocks.{i}.gamma_2": "blocks.{i}.ls2.gamma"}

_TABLE = "relative_position_bias_table"


def renamed(state: State, model: nn.Module) -> State:
    """`state` under the names of `model`'s layout; names that no layout knows stay."""
    wanted = model.state_dict().keys()
    if any(name.endswith("embedding/kernel") for name in state):
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


def from_google(arrays: State) -> State:
    """A ViT of Google's .npz files (Dosovitskiy et al., 2021; big_vision) under timm's names.

    Kernels are (in, out), those of attention (in, heads, head_dim) and (heads, head_dim, out), that of the patches
    (height, width, in, out). big_vision numbers a block's parts otherwise, and may stack all blocks along a first axis.
    """
    root = next(name for name in arrays if name.endswith("embedding/kernel")).removesuffix("embedding/kernel")
    left = {name.removeprefix(root): value for name, value in arrays.items()}
    newer = "pos_embedding" in left or "Transformer/encoderblock/LayerNorm_0/scale" in left
    if any(name.startswith("Transformer/encoderblock/") for name in left):
        left = _unstacked(left)
    attention, mlp, norm2 = (
        ("Attention_0", "MlpBlock_0", "LayerNorm_1") if newer else ("Attention_1", "MlpBlock_3", "LayerNorm_2")
    )
    state: State = {}

    def take(name: str, source: str, kind: str = "kernel") -> None:
        """Moves a layer, its weight by `kind`; a layer that the file lacks stays missing."""
        weight, bias = left.pop(f"{source}/{kind}", None), left.pop(f"{source}/bias", None)
        if weight is not None:
            state[f"{name}.weight"] = _matrix(weight, "out" in source.rpartition("/")[2])
        if bias is not None:
            state[f"{name}.bias"] = bias.flatten()

    take("patch_embed.proj", "embedding")
    take("norm", "Transformer/encoder_norm", "scale")
    take("head", "head")
    for name, source in (
        ("cls_token", "cls"),
        ("pos_embed", "pos_embedding"),
        ("pos_embed", "Transformer/posembed_input/pos_embedding"),
    ):
        if source in left:
            state[name] = left.pop(source)
    for i in range(sum(name.endswith("/LayerNorm_0/scale") for name in left)):
        block, source = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        heads = f"{source}/MultiHeadDotProduct{attention}"
        take(f"{block}.norm1", f"{source}/LayerNorm_0", "scale")
        take(f"{block}.norm2", f"{source}/{norm2}", "scale")
        for part in ("query", "key", "value"):
            take(f"{block}.attn.{part}", f"{heads}/{part}")
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}.attn.{part}.{kind}", None) for part in ("query", "key", "value")]
            if all(part is not None for part in parts):
                state[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
        take(f"{block}.attn.proj", f"{heads}/out")
        take(f"{block}.mlp.fc1", f"{source}/{mlp}/Dense_0")
        take(f"{block}.mlp.fc2", f"{source}/{mlp}/Dense_1")
    return {**state, **left}


def resized(state: State, model: nn.Module) -> State:
    """`state` with position embeddings of the model's grid and a first convolution of its channels, where that can be.

    A distilled DeiT's second token has no place in a model without one, nor has its position. A first convolution over
    three channels is summed for one: what it gives for a grey image on all three.
    """
    own, state = model.state_dict(), dict(state)
    for name in ("pos_embed", "encoder.pos_embedding"):
        if name in state and name in own and (grid := _grid(model)) is not None:
            if "dist_token" in state and "dist_token" not in own and _is_square(state[name].shape[1] - 2):
                state[name] = torch.cat([state[name][:, :1], state[name][:, 2:]], dim=1)
            state[name] = _positions(state[name], own[name], grid)
    if (name := first_conv(model)) in state and own[name].shape[1] == 1 and state[name].shape[1:2] == (3,):
        state[name] = state[name].sum(dim=1, keepdim=True)
    return state


def filtered(state: State, model: nn.Module) -> State | None:
    """`state` through the filter that timm keeps for its own models' published files; None where it has none to offer.

    It resizes what is timm's to know (relative position tables, patches) and renames official files.
    """
    module = type(model).__module__
    take = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if take is None:
        return None
    # timm's filters look a table's owner up in the model, and fail on a stranger's.
    own = model.state_dict().keys()
    strangers = {name: value for name, value in state.items() if name.endswith(_TABLE) and name not in own}
    try:
        with torch.no_grad():
            found = take({name: value for name, value in state.items() if name not in strangers}, model)
    except Exception:  # a filter asserts, looks up and reshapes as its own files allow: these are others
        return None
    return {**found, **strangers}


def first_conv(model: nn.Module) -> str:
    """The name of the weight that meets the image's channels; empty if the model has no convolution."""
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
    """A BEiT before fine-tuning has one relative position table for all blocks; afterwards each has its own."""
    shared, table = f"rel_pos_bias.{_TABLE}", f"attn.{_TABLE}"
    if shared not in state or shared in wanted or f"blocks.0.{table}" not in wanted:
        return state
    blocks = [name for name in wanted if name.endswith(table)]
    rest = {name: value for name, value in state.items() if name != shared}
    return {**{name: state[shared] for name in blocks}, **rest}


def _unstacked(arrays: State) -> State:
    """Stacked blocks (depth, ...) as numbered ones."""
    found: State = {}
    for name, value in arrays.items():
        rest = name.removeprefix("Transformer/encoderblock/")
        if rest == name:
            found[name] = value
        else:
            found.update({f"Transformer/encoderblock_{i}/{rest}": one for i, one in enumerate(value)})
    return found


def _matrix(kernel: Tensor, joins_heads: bool) -> Tensor:
    """A kernel of JAX's order as torch's weight: (out, in), or (out, in, height, width)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1).contiguous()
    if kernel.ndim == 3:
        kernel = kernel.flatten(0, 1) if joins_heads else kernel.flatten(1)
    return kernel.T.contiguous() if kernel.ndim == 2 else kernel


def _positions(old: Tensor, new: Tensor, grid: Grid) -> Tensor:
    """Position embeddings (1, P + N, D) on another grid; as they are where they cannot be."""
    prefix = new.shape[1] - prod(grid)
    sizes = old.ndim == new.ndim == 3 and old.shape[::2] == new.shape[::2] and _is_square(old.shape[1] - prefix)
    if not sizes or old.shape == new.shape:
        return old
    return resample_abs_pos_embed(old, new_size=list(grid), num_prefix_tokens=prefix)


def _is_square(n: int) -> bool:
    return n > 0 and isqrt(n) ** 2 == n


def _grid(model: nn.Module) -> Grid | None:
    """Rows and columns of the patches that a ViT has position embeddings for."""
    if isinstance(model, TorchvisionViT):
        side = model.image_size // model.patch_size
        return side, side
    if isinstance(model, MergingModel):
        return model.grid
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)  # timm's models
    return grid if isinstance(grid, tuple) else None
