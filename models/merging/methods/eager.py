"""Whether a method may look at values and use NumPy."""

from __future__ import annotations

import torch
from torch import Tensor


def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read at no cost.

    They cannot be read where torch compiles, exports, traces, or counts with tensors that have no data; and on other
    devices reading them waits for the device.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tracing and not torch.compiler.is_compiling()
