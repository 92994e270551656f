"""The forms of attention that are timed."""

import torch

from engine.cost.speed.attention import ATTENTIONS


def test_every_attention_is_the_same_attention():
    """The forms that are compared differ in speed alone."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 16, generator=generator) for _ in range(3))
    bias = torch.rand(2, 1, 1, 5, generator=generator)
    wanted = ((q @ k.mT) / 4 + bias).softmax(-1) @ v
    for name, (dtype, attend) in ATTENTIONS.items():
        if "no bias" not in name:
            out = attend(q.to(dtype), k.to(dtype), v.to(dtype), bias).float()
            torch.testing.assert_close(out, wanted, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0.02)
