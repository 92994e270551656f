"""Multiplies layer scale into the layers before it, for models that have none.

Layer scale (Touvron et al., 2021) multiplies what attention and MLP add by one learned factor for each channel. Both
end in a linear layer, whose weight and bias can take the factors: the function stays the same, up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .files import State

# The factors' name, timm's and that of the official DeiT III, BEiT and CaiT -> the layer that takes them.
_LAYER_BEFORE = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
_OTHER_NAME = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}


def without_layer_scale(state: State, wanted: Collection[str]) -> tuple[State, int]:
    """Folds every layer scale that the model does not have.

    Args:
        state: weights with timm's names.
        wanted: the names of the model's state.

    Returns:
        The weights, and how many factors (one vector for each attention and each MLP) are in other layers now.
    """
    folded, count = dict(state), 0
    for name, gamma in state.items():
        ending = next((ending for ending in _LAYER_BEFORE if name.endswith(f".{ending}")), None)
        if ending is None:
            continue
        block = name.removesuffix(ending)
        weight, bias = (f"{block}{_LAYER_BEFORE[ending]}.{kind}" for kind in ("weight", "bias"))
        has_place = name in wanted or block + _OTHER_NAME[ending] in wanted
        if has_place or weight not in folded or gamma.shape != folded[weight].shape[:1]:
            continue
        for layer in (weight, bias):
            if layer in folded:
                folded[layer] = _scaled(folded[layer], gamma)
        del folded[name]
        count += 1
    return folded, count


def _scaled(values: Tensor, factors: Tensor) -> Tensor:
    """Multiplies each output channel, the first dimension; in at least 32 bits, so that 16-bit files lose nothing."""
    dtype = torch.promote_types(torch.promote_types(values.dtype, factors.dtype), torch.float32)
    return values.to(dtype) * factors.to(dtype).reshape(-1, *[1] * (values.ndim - 1))
