"""Each op's count against hand computation, and the ops that must never pass uncounted."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.cost import ops
from engine.cost.macs import CountError, measure


class Toy(nn.Module):
    """A function of an image (B, 1, 4, 6) and of weights (6, 6) as a model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


def toy_macs(function) -> int:
    return measure(Toy(function), (1, 4, 6)).macs


# Ops by hand: x (1, 1, 4, 6), weight (6, 6)

OPS = {
    "linear": (lambda x, w: F.linear(x, w), 4 * 6 * 6),
    "linear with a vector": (lambda x, w: F.linear(x, w[0]), 4 * 6),
    "matmul": (lambda x, w: x @ w, 4 * 6 * 6),
    "matmul, batch on the right": (lambda x, w: w @ x.mT.expand(5, 1, 6, 4), 5 * 6 * 6 * 4),
    "matrix by vector": (lambda x, w: x @ w[0], 4 * 6),
    "vector by vector": (lambda x, w: w[0] @ w[1], 6),
    "mv": (lambda x, w: torch.mv(x[0, 0], w[0]), 4 * 6),
    "bmm": (lambda x, w: torch.bmm(x[0], x[0].mT), 4 * 4 * 6),
    "addmm": (lambda x, w: torch.addmm(w[0], x[0, 0], w), 4 * 6 * 6),
    "baddbmm": (lambda x, w: torch.baddbmm(x[0, :, :, :4], x[0], x[0].mT), 4 * 4 * 6),
    "baddbmm_": (lambda x, w: x[0, :, :, :4].clone().baddbmm_(x[0], x[0].mT), 4 * 4 * 6),
    "addbmm": (lambda x, w: torch.addbmm(w[:4, :4], x[0].expand(3, 4, 6), x[0].mT.expand(3, 6, 4)), 3 * 4 * 4 * 6),
    "einsum": (lambda x, w: torch.einsum("bcnd,ed->bcne", x, w), 4 * 6 * 6),
    "einsum, outer": (lambda x, w: torch.einsum("n,m->nm", w[0], w[1]), 36),
    "einsum, dots": (lambda x, w: torch.einsum("...nd,...md->...nm", x, x.expand(2, 1, 4, 6)), 2 * 4 * 4 * 6),
    "einsum of one": (lambda x, w: torch.einsum("bcnd->bcdn", x), 0),
    "cdist": (lambda x, w: torch.cdist(x, w), 4 * 6 * 6),
    "convolution, same": (lambda x, w: F.conv2d(x, w[:2, :3].reshape(2, 1, 1, 3), padding="same"), 2 * 3 * 4 * 6),
    "convolution, valid": (lambda x, w: F.conv2d(x, w[:2, :3].reshape(2, 1, 1, 3), padding="valid"), 2 * 3 * 4 * 4),
    "convolution, stride": (lambda x, w: F.conv2d(x, w[:2, :2].reshape(1, 1, 2, 2), stride=2), 4 * 2 * 3),
    "convolution, groups": (lambda x, w: F.conv1d(x[0], w[:4, :3].unsqueeze(1), groups=4), 4 * 3 * 4),
    "convolution, transposed": (lambda x, w: F.conv_transpose2d(x, w[:2, :2].reshape(1, 1, 2, 2), stride=2), 4 * 24),
    "attention": (lambda x, w: F.scaled_dot_product_attention(x, w[None, None], w[None, None]), 2 * 4 * 6 * 6),
    "attention, biased": (lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=x[..., :4]), 2 * 4 * 4 * 6),
    "attention, narrow values": (lambda x, w: F.scaled_dot_product_attention(x, x, x[..., :2]), 4 * 4 * 6 + 4 * 4 * 2),
    "attention, for the CPU": (
        lambda x, w: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0],
        2 * 4 * 4 * 6,
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_op_by_hand(name: str) -> None:
    function, macs = OPS[name]
    assert toy_macs(function) == macs


def test_fused_layers_of_torch_by_hand() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, dim_feedforward=10).requires_grad_(False)
    attention = layer.self_attn
    projections = (attention.in_proj_weight, attention.in_proj_bias, *attention.out_proj.parameters())

    def multi_head(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch._native_multi_head_attention(x[0], x[0], x[0], 6, 2, *projections)[0]

    def encoder_layer(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        norms = (*layer.norm1.parameters(), *layer.norm2.parameters())
        mlp = (*layer.linear1.parameters(), *layer.linear2.parameters())
        return torch._transformer_encoder_layer_fwd(x[0], 6, 2, *projections, False, False, 1e-5, *norms, *mlp)

    expected = 4 * 4 * 6 * 6 + 2 * 4 * 4 * 6
    assert toy_macs(multi_head) == expected
    assert toy_macs(encoder_layer) == expected + 2 * 4 * 6 * 10


# What must be refused


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[None, None]:
        return None, None


REFUSED = {
    "aten::bilinear": lambda x, w: F.bilinear(x[0, 0], x[0, 0], w[None]),
    "aten::tensordot": lambda x, w: torch.tensordot(x, w, 1),
    "aten::fft_fft": lambda x, w: torch.fft.fft(x).real,
    "aten::linalg_inv": lambda x, w: torch.linalg.inv(w + 9 * torch.eye(6)),
    "aten::cosine_similarity": lambda x, w: F.cosine_similarity(x, x, dim=-1),
    "aten::linalg_multi_dot": lambda x, w: torch.linalg.multi_dot([x[0, 0], w, w]),
    "prim::PythonOp.Opaque": lambda x, w: Opaque.apply(x, w),
    "einsum": lambda x, w: torch.einsum("bcnd,de,ef->bcnf", x, w, w),
}


@pytest.mark.parametrize("op", REFUSED)
def test_uncounted_op_is_an_error(op: str) -> None:
    with pytest.raises(CountError, match=op):
        toy_macs(REFUSED[op])


def test_op_without_its_handle_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ops.HANDLES, "aten::scaled_dot_product_attention")
    with pytest.raises(CountError, match=r"aten::scaled_dot_product_attention \(1 times\)"):
        toy_macs(lambda x, w: F.scaled_dot_product_attention(x, x, x))


def test_recurrent_network_is_an_error() -> None:
    with pytest.raises(CountError, match="aten::lstm"):
        measure(nn.Sequential(nn.Flatten(0, 1), nn.LSTM(6, 6)), (1, 4, 6))


def test_operator_of_another_library_is_an_error() -> None:
    library = torch.library.Library("hybridmerge_test", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x.clone(), "CompositeExplicitAutograd")
    with pytest.raises(CountError, match="hybridmerge_test::mystery"):
        toy_macs(lambda x, w: torch.ops.hybridmerge_test.mystery(x))


def test_names_that_only_look_like_products_pass() -> None:
    assert toy_macs(lambda x, w: torch.lgamma(torch.cummax(F.normalize(x, dim=-1), dim=-1).values)) == 0
    assert toy_macs(lambda x, w: F.interpolate(x, scale_factor=2, mode="bilinear")) == 0


def test_random_state_that_the_forward_draws_from() -> None:
    state = torch.get_rng_state()
    toy_macs(lambda x, w: x + torch.rand_like(x))
    assert torch.equal(torch.get_rng_state(), state)
