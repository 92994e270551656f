"""Google's files of ViTs (.npz): converts their names and shapes to timm's."""

from __future__ import annotations

import torch
from torch import Tensor

from .files import State

_GOOGLE = "embedding/kernel"  # the end of a name that only these files have


def is_google(state: State) -> bool:
    """Returns whether a file is one of Google's."""
    return _google_root(state) is not None


def from_google(arrays: State) -> State:
    """Converts a ViT from Google's .npz files (Dosovitskiy et al., 2021; big_vision) to timm's names.

    Kernels are (in, out), those of attention (in, heads, head_dim) and (heads, head_dim, out), that of the patch
    embedding (height, width, in, out). big_vision numbers a block's parts differently, and may stack all blocks along a
    first axis. Entries outside of the model's own folder are left out; see `beside_google`.
    """
    root = _google_root(arrays) or ""
    left = {name.removeprefix(root): value for name, value in arrays.items() if name.startswith(root)}
    newer = "pos_embedding" in left or "Transformer/encoderblock/LayerNorm_0/scale" in left
    if any(name.startswith("Transformer/encoderblock/") for name in left):
        left = _unstacked(left)
    attention, mlp, norm2 = (
        ("Attention_0", "MlpBlock_0", "LayerNorm_1") if newer else ("Attention_1", "MlpBlock_3", "LayerNorm_2")
    )
    state: State = {}

    def take(name: str, source: str, kind: str = "kernel") -> None:
        """Moves a layer's weight, called `kind`, and bias to `state`; skips a layer that the file does not have."""
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
        if source in left and name not in state:
            state[name] = left.pop(source)
    for i in range(sum(name.endswith("/LayerNorm_0/scale") for name in left)):
        block, source = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        heads = f"{source}/MultiHeadDotProduct{attention}"
        take(f"{block}.norm1", f"{source}/LayerNorm_0", "scale")
        take(f"{block}.norm2", f"{source}/{norm2}", "scale")
        for part in ("query", "key", "value"):
            take(f"{block}.attn.{part}", f"{heads}/{part}")
        for kind in ("weight", "bias"):
            parts = [f"{block}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            if all(part in state for part in parts):
                state[f"{block}.attn.qkv.{kind}"] = torch.cat([state.pop(part) for part in parts])
        take(f"{block}.attn.proj", f"{heads}/out")
        take(f"{block}.mlp.fc1", f"{source}/{mlp}/Dense_0")
        take(f"{block}.mlp.fc2", f"{source}/{mlp}/Dense_1")
    return {**state, **left}


def beside_google(state: State) -> list[str]:
    """Returns the names in one of Google's files that are not the model's; none for any other file.

    They are the optimizer's state, counters, and the other half of a model of images and texts.
    """
    root = _google_root(state)
    return [] if root is None else [name for name in state if not name.startswith(root)]


def _google_root(state: State) -> str | None:
    """Returns what the names of a ViT in one of Google's files begin with; None for any other file."""
    found = (name.removesuffix(_GOOGLE) for name in state if name.endswith(_GOOGLE))
    return next(found, None)


def _unstacked(arrays: State) -> State:
    """Splits stacked blocks (depth, ...) into numbered ones."""
    numbered: State = {}
    for name, value in arrays.items():
        rest = name.removeprefix("Transformer/encoderblock/")
        if rest == name:
            numbered[name] = value
        else:
            numbered.update({f"Transformer/encoderblock_{i}/{rest}": one for i, one in enumerate(value)})
    return numbered


def _matrix(kernel: Tensor, joins_heads: bool) -> Tensor:
    """Converts a kernel from JAX's order to torch's: (out, in), or (out, in, height, width)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1).contiguous()
    if kernel.ndim == 3:
        kernel = kernel.flatten(0, 1) if joins_heads else kernel.flatten(1)
    return kernel.T.contiguous() if kernel.ndim == 2 else kernel
