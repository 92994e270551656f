"""Attention is the same attention whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models import attention
from models.attention import attend

BIASES = {
    "none": None,
    "of sizes": (5, 1, 1, 7),
    "of positions": (1, 3, 7, 7),
    "of both": (5, 3, 7, 7),
    "of heads": (3, 7, 7),
    "of pairs": (7, 7),
}


@pytest.fixture
def bf16_processor(monkeypatch):
    monkeypatch.setattr(attention, "cpu_has_bf16", lambda: True)


def inputs(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, 7, 16, generator=generator).to(dtype).requires_grad_() for _ in "qkv"]


def by_definition(q, k, v, bias):
    q, k, v = (x.double() for x in (q, k, v))
    weights = (q @ k.mT / 4 + (0 if bias is None else bias)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("scores", [1, 2 * 3 * 7 * 7, 10**6], ids=["an image", "two images", "all images"])
def test_by_blocks_it_is_attention_with_its_gradients(shape, scores, bf16_processor, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", scores)
    bias = None if shape is None else 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    q, k, v = inputs()
    weight = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(2))
    out, wanted = attend(q, k, v, bias), by_definition(q, k, v, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, atol=0.03, rtol=0.02)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, wanted))
    for gradient, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, exact, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    ("native", "dtype", "gradient", "computed"),
    [
        (True, torch.bfloat16, True, None),
        (True, torch.bfloat16, False, None),
        (True, torch.float32, True, torch.float32),
        (False, torch.bfloat16, True, torch.float32),
        (False, torch.bfloat16, False, torch.bfloat16),
    ],
)
def test_which_precisions_the_fused_kernel_computes_on_a_cpu(native, dtype, gradient, computed, monkeypatch):
    """None: it is not called."""
    monkeypatch.setattr(attention, "cpu_has_bf16", lambda: native)
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, *a, **b: (seen.append(q.dtype), real(q, *a, **b))[1]
    )
    given = [x if gradient else x.detach() for x in inputs(dtype)]
    assert attend(*given, None).dtype == dtype
    assert seen == ([computed] if computed else [])


def test_dropout_drops_weights_and_keeps_their_mean(bf16_processor):
    q, k, _ = inputs()
    v, bias = torch.ones(5, 3, 7, 16, dtype=torch.bfloat16), torch.zeros(5, 1, 1, 7)
    torch.manual_seed(0)
    dropped = torch.stack([attend(q, k, v, bias, 0.5) for _ in range(200)]).float()
    assert dropped.std(0).min() > 0.1
    assert (dropped.mean(0) - 1).abs().max() < 0.3
    assert torch.equal(attend(q, k, v, bias, 0.0), attend(q, k, v, bias))


def test_shapes_are_known_on_the_meta_device():
    q = torch.randn(2, 3, 5, 8, device="meta")
    assert attend(q, q, q, q.new_zeros(5, 5)).shape == (2, 5, 24)
