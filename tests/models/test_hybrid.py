"""The hybrid: starts as its ViT, its bridge by hand, and what its parts do."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from models import build_model
from models.bridge import Bridge
from models.cnn import CONV_BLOCKS
from models.merging import Tokens
from models.settings import UserError

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10}
MERGE = {"method": "tome", "r": 8}


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", CONV_BLOCKS)
@torch.no_grad()
def test_with_vit_weights_it_starts_as_that_vit(block):
    vit = build_model("vit", **SMALL, merge=MERGE).eval()
    hybrid = build_model("hybrid", **SMALL, merge=MERGE, stem="patch", cnn={"block": block}).eval()
    hybrid.vit.load_state_dict(vit.state_dict(), strict=True)
    assert torch.equal(hybrid(images()), vit(images()))


def test_the_convolutional_half_learns_although_it_starts_at_zero():
    """The first step moves its last layer alone, the second everything before it."""
    hybrid = build_model("hybrid", **SMALL, merge=MERGE)
    optimizer = torch.optim.SGD(hybrid.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(hybrid(images()), torch.tensor([1, 2])).backward()
        optimizer.step()
    for name, parameter in hybrid.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a key's bias shifts all scores of a query alike: softmax does not see it
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("stem", "block", "stride", "skip"), list(itertools.product(["conv", "patch"], CONV_BLOCKS, [1, 2], [True, False]))
)
@torch.no_grad()
def test_all_parts_fit_together(stem, block, stride, skip):
    hybrid = build_model(
        "hybrid",
        **SMALL,
        merge=MERGE,
        stem=stem,
        bridge={"stride": stride, "skip": skip},
        cnn={"block": block, "depth": 1, "dim": 20},
    ).eval()
    torch.nn.init.normal_(hybrid.conv_head.fc.weight)
    together = hybrid(images())
    torch.testing.assert_close(hybrid(images()[:1]), together[:1], atol=1e-5, rtol=1e-5)
    x, tokens = hybrid.forward_features(images())
    assert x.shape == (2, 65 - 24, 48) and tokens.size.sum(1).tolist() == [65.0, 65.0]


@torch.no_grad()
def test_without_a_cnn_stage_it_is_its_vit():
    hybrid = build_model("hybrid", **SMALL, merge=MERGE, cnn=None).eval()
    assert hybrid.conv_head is None
    assert torch.equal(hybrid(images()), hybrid.vit(images()))


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_the_bridge_by_hand(stride):
    """Cell by cell: the mean over its patches of projected token + log size embedding + the stem's features."""
    torch.manual_seed(0)
    bridge = Bridge(embed_dim=3, dim=5, stride=stride, skip=True)
    x, features = torch.randn(1, 4, 3), torch.randn(1, 3, 2, 4)
    index = torch.tensor([[0, 1, 1, 2, 3, 1, 2, 3, 3]])  # the class token, then 2 x 4 patches
    tokens = Tokens(index, torch.tensor([[1.0, 3.0, 2.0, 3.0]]))
    out = bridge(x, tokens, features, prefix=1)
    assert out.shape == (1, 5, 2 // stride, 4 // stride)
    for row, column in itertools.product(range(2 // stride), range(4 // stride)):
        cell = torch.zeros(5)
        for i, j in itertools.product(range(stride), range(stride)):
            r, c = row * stride + i, column * stride + j
            token = int(index[0, 1 + r * 4 + c])
            cell += bridge.proj(x[0, token]) + tokens.size[0, token].log() * bridge.size_embed.weight[:, 0]
            cell += bridge.skip.weight[:, :, 0, 0] @ features[0, :, r, c]
        torch.testing.assert_close(out[0, :, row, column], cell / stride**2)


@pytest.mark.parametrize("block", CONV_BLOCKS)
@torch.no_grad()
def test_a_conv_block_starts_near_the_identity(block):
    x = torch.randn(2, 8, 6, 6)
    module = CONV_BLOCKS[block](8, layer_scale=1e-4)
    assert 0 < (module(x) - x).abs().max() < 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stem": "conv", "patch_size": 3, "img_size": 33}, ["patch_size", "3", "power of two", "stem: patch"]),
        ({"bridge": {"stride": 3}}, ["bridge.stride", "3", "8 patches"]),
        ({"cnn": {"block": "resnext"}}, ["model.cnn.block", "resnext", "convnext"]),
        ({"stem": "cov"}, ["model.stem", "cov", "conv"]),
        ({"cnn": {"depth": 0}}, ["model.cnn.depth", "0"]),
    ],
)
def test_mistakes_are_said_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        build_model("hybrid", **{**SMALL, **options})
    for word in words:
        assert word in str(error.value)
