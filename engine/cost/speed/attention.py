"""Times attention with a size bias, for each precision, each way to add the bias, and each implementation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.cost.speed.model.kernels import AUTO, choosing, kernels_of
from models.attention import by_blocks
from models.timing import Times, timed

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, bias -> weighted values


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the size bias as an additive mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def unbiased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention without a size bias, for comparison."""
    return F.scaled_dot_product_attention(q, k, v)


def mask_free(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the bias as one more column, q' = [q, 1 / scale], k' = [k, bias], padded to a multiple of 8.

    Then scale q' k'^T = scale q k^T + bias. Without a mask, CUDA's flash kernel can be used.
    """
    scale, width = q.shape[-1] ** -0.5, q.shape[-1]
    column = bias.squeeze(-2).unsqueeze(-1).expand(-1, q.shape[1], -1, -1)
    padding = -(width + 1) % 8
    q = F.pad(torch.cat([q, torch.full_like(q[..., :1], 1 / scale)], -1), (0, padding))
    k = F.pad(torch.cat([k, column.to(k.dtype)], -1), (0, padding))
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 1 + padding)), scale=scale)[..., :width]


def in_fp32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the size bias as a mask, computed in fp32 whatever the inputs' precision."""
    return masked(q.float(), k.float(), v.float(), bias).to(q.dtype)


FORMS: dict[str, Attention] = {"": masked, ", no bias": unbiased, ", mask-free": mask_free}


@dataclass(frozen=True)
class Form:
    """A form of attention that is timed: the type of queries, keys and values, and which implementation computes it."""

    dtype: torch.dtype
    attend: Attention
    kernel: str


def forms_on(device: torch.device) -> dict[str, Form]:
    """Returns name -> what is timed on a device: every form, in every precision and implementation that it has."""
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda":
        precisions["fp16"] = torch.float16
    found = {}
    for kernel in kernels_of(device) or (AUTO,):
        for precision, dtype in precisions.items():
            found |= {f"{precision}{form}, {kernel}": Form(dtype, attend, kernel) for form, attend in FORMS.items()}
        found[f"fp32 inside bf16, {kernel}"] = Form(torch.bfloat16, in_fp32, kernel)
    found["bf16 by blocks"] = Form(torch.bfloat16, by_blocks, AUTO)
    return found


def attention_times(
    shape: tuple[int, int, int, int], repeats: int, device: torch.device, *, train: bool
) -> tuple[Times, dict[str, str]]:
    """Times every form of `forms_on`.

    Args:
        shape: (B, heads, T, head_dim) of queries, keys and values.
        repeats: timed calls of each.
        device: the device to compute on.
        train: time the forward and the backward pass; otherwise the forward pass alone.

    Returns:
        Milliseconds of each call, and the forms that the device cannot compute, with the reason.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (shape[0], 1, 1, shape[2]), generator=generator)
    bias = sizes.float().log().to(device)
    calls, refused = {}, {}
    for name, form in forms_on(device).items():
        inputs = [torch.randn(shape, generator=generator).to(device, form.dtype).requires_grad_(train) for _ in "qkv"]

        def call(form: Form = form, inputs: list[Tensor] = inputs) -> None:
            with choosing(form.kernel, device):
                out = form.attend(*inputs, bias)
            if train:
                out.backward(torch.ones_like(out))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's reasons, of which the error has one
                call()
        except RuntimeError as error:
            refused[name] = str(error).splitlines()[0]
        else:
            calls[name] = call
    return timed(calls, repeats, device), refused
