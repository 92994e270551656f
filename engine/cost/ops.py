"""How fvcore counts the operations that multiply, and which operations must not go uncounted.

Counts are in multiply-adds (MACs), by kind of operation. fvcore's own handles cover only some operations, count fused
attention as zero, and misread some shapes (a product with a vector, a batch on the right side only). Therefore every
operation that multiplies has a handle here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from fvcore.nn.jit_handles import conv_flop_count, get_shape

from models.merging.budget import CountError

# A "product" is the matching of tokens in our models, and unfused attention in others.
KINDS = ("convolution", "linear", "attention", "product")
ACTIVATIONS = "activations"  # beside the kinds, so that one trace of a model gives both

Handle = Callable[[list[Any], list[Any]], Counter]  # an op's inputs and outputs, as jit values -> MACs by kind


def _shape(value: Any) -> list[int]:
    shape = get_shape(value)
    if shape is None:
        raise CountError(f"the trace gives no shape for {value.debugName()} of {value.node().kind()}")
    return shape


def _contraction(kind: str, position: int) -> Handle:
    """Counts a matrix product whose left factor is input `position`: its last dimension, for each output element."""

    def handle(inputs: list[Any], outputs: list[Any]) -> Counter:
        return Counter({kind: prod(_shape(outputs[0])) * _shape(inputs[position])[-1]})

    return handle


def _addbmm(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Counts sum_b a (B, N, K) @ b (B, K, M), whose output has no batch dimension."""
    return Counter({"product": prod(_shape(inputs[1])) * _shape(outputs[0])[-1]})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Counts one multiplication for each combination of the indices of two operands; none for a single operand."""
    equation = inputs[0].toIValue().replace(" ", "")
    operands = [_shape(value) for value in inputs[1].node().inputs()]
    if len(operands) == 1:
        return Counter()
    if len(operands) > 2:
        raise CountError(f"einsum {equation!r} has {len(operands)} operands; contract two at a time")
    extents: Counter = Counter()
    for term, shape in zip(equation.split("->")[0].split(","), operands, strict=True):
        head, dots, tail = term.partition("...")
        middle = [f"dim{i}" for i in range(len(shape) - len(head) - len(tail), 0, -1)] if dots else []
        for index, extent in zip([*head, *middle, *tail], shape, strict=True):
            extents[index] = max(extents[index], extent)
    return Counter({"product": prod(extents.values())})


def _convolution(transposed_at: int | None) -> Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter:
        transposed = transposed_at is not None and inputs[transposed_at].toIValue()
        shapes = (_shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0]))
        return Counter({"convolution": conv_flop_count(*shapes, transposed=transposed)})

    return handle


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Counts q k^T and the product with v: q (..., Tq, D), k (..., Tk, D), v (..., Tk, Dv) -> (..., Tq, Dv).

    The leading dimensions are taken from the output, where they are already broadcast.
    """
    query, key, output = _shape(inputs[0]), _shape(inputs[1]), _shape(outputs[0])
    return Counter({"attention": prod(output[:-1]) * key[-2] * (query[-1] + output[-1])})


def _multi_head(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Counts torch's fused nn.MultiheadAttention: query (B, T, D), key and value (B, S, D)."""
    batch, queries, dim = _shape(inputs[0])
    keys = _shape(inputs[1])[1]
    linear = batch * dim * dim * (2 * queries + 2 * keys)
    return Counter({"linear": linear, "attention": 2 * batch * queries * keys * dim})


def _encoder_layer(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Counts torch's fused nn.TransformerEncoderLayer: x (B, T, D); input 14 is the first MLP weight (hidden, D)."""
    hidden, dim = _shape(inputs[14])
    mlp = 2 * prod(_shape(inputs[0])[:-1]) * dim * hidden
    return _multi_head([inputs[0], inputs[0]], outputs) + Counter({"linear": mlp})


HANDLES: dict[str, Handle] = {
    "aten::_convolution": _convolution(transposed_at=6),
    "aten::_convolution_mode": _convolution(transposed_at=None),  # padding="same" and "valid"
    "aten::linear": _contraction("linear", 0),
    "aten::addmm": _contraction("linear", 1),
    **{f"aten::{name}": _contraction("product", 0) for name in ("matmul", "mm", "bmm", "mv", "dot", "inner")},
    **{f"aten::{name}": _contraction("product", 1) for name in ("baddbmm", "baddbmm_", "addmm_", "addmv")},
    "aten::addbmm": _addbmm,
    "aten::einsum": _einsum,
    "aten::cdist": _contraction("product", 0),
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_native_multi_head_attention": _multi_head,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
}


def with_activations(handle: Handle) -> Handle:
    """Returns a handle that also counts the elements that the op outputs, as ACTIVATIONS.

    As in fvcore, softmax, norms and element-wise ops have no activations.
    """

    def both(inputs: list[Any], outputs: list[Any]) -> Counter:
        return handle(inputs, outputs) + Counter({ACTIVATIONS: prod(_shape(outputs[0]))})

    return both


_MULTIPLIES = re.compile(
    r"mm|mv|matmul|matrix|conv|attention|attn|transformer|multi_head|einsum|linear|linalg|dot|inner|outer|kron|cdist"
    r"|cosine_similarity|cov$|corrcoef|lstm|gru|rnn|::addr|::ger$|fft|stft|cholesky|inverse|svd|solve|trilinear"
)
# Names that match although the op does not multiply; and the sequential part of facility location, which only adds and
# compares.
_HARMLESS = frozenset(["hybridmerge::select"]) | frozenset(
    f"aten::{name}"
    for name in (
        "cummax",
        "cummin",
        "lgamma",
        "digamma",
        "polygamma",
        "special_gammaln",
        "mvlgamma",
        "hamming_window",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "_upsample_bilinear2d_aa",
        "upsample_trilinear3d",
        "linalg_vector_norm",
        "linalg_norm",
        "linalg_matrix_norm",
        "linalg_cross",
        "linalg_diagonal",
    )
)


def uncounted(ops: Iterable[str]) -> list[str]:
    """Returns the ops, of those that fvcore does not count, that multiply or may multiply.

    These are products, recognised by name, and all ops that the tracer cannot look into: autograd functions, scripted
    functions and other libraries' operators (anything that is not `aten::`).
    """
    return sorted(op for op in ops if op not in _HARMLESS and (not op.startswith("aten::") or _MULTIPLIES.search(op)))
