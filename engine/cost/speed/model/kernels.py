"""The implementations of `scaled_dot_product_attention`: which exist, how one is chosen, and which of them ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from models import attention

AUTO = "auto"
BLOCKS = "blocks"  # our own on a CPU in bf16: models.attention.by_blocks
NONE = "-"  # a model without attention, or with one of its own
# type of device -> name of an implementation -> torch's name. On a CPU torch calls its fused kernel flash attention.
KERNELS: dict[str, dict[str, SDPBackend]] = {
    "cpu": {"fused": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    },
}
# operator -> the implementation that it belongs to. The softmax is that of `math`, which is made of several operators.
OPERATORS = {
    "_scaled_dot_product_flash_attention_for_cpu": "fused",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_attention_math_for_mps": "math",
    "_safe_softmax": "math",
    "_native_multi_head_attention": "native",  # nn.MultiheadAttention in evaluation mode; torchvision's ViTs have it
}


def kernels_of(device: torch.device) -> dict[str, SDPBackend]:
    """Returns the implementations that can be chosen on a device."""
    return KERNELS.get(device.type, {})


@contextmanager
def choosing(name: str, device: torch.device) -> Iterator[None]:
    """Has `scaled_dot_product_attention` use one implementation; where it cannot be used, torch raises RuntimeError.

    `nn.MultiheadAttention` then calls it too, in place of a kernel of its own.

    Args:
        name: a key of `kernels_of(device)`; AUTO changes nothing.
        device: the device to compute on.
    """
    if name == AUTO:
        yield
        return
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(kernels_of(device)[name]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def seen_in(model: nn.Module, images: Tensor) -> str:
    """Runs a model once and returns the names of the implementations of attention that it used, joined by "+".

    Args:
        model: the model. It is called as it is, in the contexts that are active.
        images: what it is called with, (B, C, H, W).

    Returns:
        Such as "fused"; NONE if it called none.
    """
    with _Operators() as operators, _blocks(operators.names):
        model(images)
    known = {**OPERATORS, BLOCKS: BLOCKS}
    names = dict.fromkeys(known[name] for name in operators.names if name in known)
    return "+".join(names) or NONE


@contextmanager
def _blocks(names: dict[str, None]) -> Iterator[None]:
    """Adds BLOCKS to the names when attention is computed by blocks, which no operator is for."""
    by_blocks = attention.by_blocks

    def seen(*args: Any) -> Tensor:
        names[BLOCKS] = None
        return by_blocks(*args)

    attention.by_blocks = seen
    try:
        yield
    finally:
        attention.by_blocks = by_blocks


class _Operators(TorchDispatchMode):
    """Records the names of all operators that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] = None
        return func(*args, **(kwargs or {}))
