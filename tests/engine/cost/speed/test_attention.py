"""The forms of attention that are timed."""

import pytest
import torch

from engine.cost.speed.attention import attention_times, forms_on, mask_free, masked
from engine.cost.speed.model.kernels import choosing

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", forms_on(CPU))
def test_every_attention_is_the_same_attention(name):
    """The forms that are compared differ in speed alone."""
    form = forms_on(CPU)[name]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 16, generator=generator) for _ in range(3))
    bias = torch.rand(2, 1, 1, 5, generator=generator)
    wanted = ((q @ k.mT) / 4 + (0 if "no bias" in name else bias)).softmax(-1) @ v
    with choosing(form.kernel, CPU):
        out = form.attend(q.to(form.dtype), k.to(form.dtype), v.to(form.dtype), bias).float()
    torch.testing.assert_close(out, wanted, atol=1e-5 if form.dtype == torch.float32 else 0.03, rtol=0.02)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("width", [1, 7, 8, 32, 63, 64])
def test_the_size_bias_as_a_column_is_the_mask_and_attention_over_copies(dtype, tolerance, width):
    """Both are attention over tokens that are there as often as their size says, forward and backward."""
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(1, 2, 6, width, generator=generator, dtype=dtype).requires_grad_() for _ in range(3))
    sizes = torch.randint(1, 9, (6,), generator=generator)
    bias = sizes.to(dtype).log()[None, None, None]
    copies = torch.arange(6).repeat_interleave(sizes)
    wanted = ((q @ k[:, :, copies].mT) * width**-0.5).softmax(-1) @ v[:, :, copies]
    gradients = torch.autograd.grad(wanted.square().sum(), (q, k, v))
    for attend in (masked, mask_free):
        out = attend(q, k, v, bias)
        torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)
        for ours, theirs in zip(torch.autograd.grad(out.square().sum(), (q, k, v)), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=20 * tolerance, rtol=20 * tolerance)


@pytest.mark.parametrize("width", [7, 8, 31, 63, 64])
def test_heads_stay_a_multiple_of_eight_and_no_wider_than_needed(width, monkeypatch):
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1], options.get("attn_mask")))
        return real(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    q = torch.randn(1, 1, 4, width)
    mask_free(q, q, q, torch.zeros(1, 1, 1, 4))
    wide = 8 * (width // 8 + 1)
    assert seen == [(wide, wide, wide, None)]


@pytest.mark.parametrize("train", [False, True])
def test_what_a_device_cannot_compute_says_why(train, monkeypatch):
    from torch.nn.attention import SDPBackend

    from engine.cost.speed.model import kernels

    monkeypatch.setitem(kernels.KERNELS["cpu"], "cudnn", SDPBackend.CUDNN_ATTENTION)
    times, refused = attention_times((1, 1, 4, 8), 1, CPU, train=train)
    assert set(times) | set(refused) == set(forms_on(CPU))
    assert set(refused) == {name for name in forms_on(CPU) if name.endswith("cudnn")}
    assert all("backend" in reason for reason in refused.values())
