"""Rotary positions of merged tokens, in timm's Eva: EVA-02, DINOv3, Perception Encoder and other ViTs with RoPE."""

import pytest
import timm
import torch
from timm.models import eva

from models.explain import explain
from models.merging import Tokens, initial_tokens, wrap
from models.merging.layer import MergeLayer
from models.merging.methods import MERGERS
from models.merging.tokens import Soft
from models.merging.wrapping import blocks_of, schedule_of, trace
from models.merging.wrapping.rotary import eva_block, mean_rotation, rotated
from tests.marks import mostly_slow
from tests.models.merging.wrapped_models import MODELS, PATCHES, arguments_of_blocks, built, images

GROUPS = [[0, 1, 5], [2], [3, 4], [6, 7]]
NAMES = (
    "eva02_tiny_patch14_224",
    "eva02_base_patch16_clip_224",
    "vit_small_patch16_dinov3",
    "vit_pe_core_tiny_patch16_384",
)


def state(groups, prefix=1):
    inputs = prefix + sum(map(len, groups))
    index = torch.zeros(1, inputs, dtype=torch.long)
    index[0, :prefix] = torch.arange(prefix)
    for token, members in enumerate(groups):
        index[0, [prefix + member for member in members]] = prefix + token
    return Tokens(index, torch.tensor([[1.0] * prefix + [float(len(members)) for members in groups]]))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_the_score_between_merged_tokens_is_the_mean_of_their_members_scores(half, heads):
    tokens, angle = state(GROUPS), torch.randn(heads, 8, 4)
    angle = torch.cat([angle, angle], -1) if half else angle.repeat_interleave(2, -1)
    rope = torch.cat([angle.sin(), angle.cos()], -1)
    rope = rope[0] if heads == 1 else rope
    q, k = torch.randn(2, 1, 3, 5, 8).unbind(0)
    rotation = mean_rotation(rope, tokens, prefix=1)
    scores = rotated(q, rotation, 1, half) @ rotated(k, rotation, 1, half).mT
    for i, rows in enumerate(GROUPS):
        for j, columns in enumerate(GROUPS):
            pairs = []
            for a in rows:
                for b in columns:
                    one, other = (x[:, :, [0, 1 + at]] for x, at in ((q, i), (k, j)))
                    one = rotated(one, rope[..., a : a + 1, :], 1, half)
                    other = rotated(other, rope[..., b : b + 1, :], 1, half)
                    pairs.append((one[0, :, 1] * other[0, :, 1]).sum(-1))
            torch.testing.assert_close(scores[0, :, 1 + i, 1 + j], torch.stack(pairs).mean(0), atol=1e-5, rtol=1e-5)
    assert torch.equal(rotated(q, rotation, 1, half)[:, :, 0], q[:, :, 0])  # the class token has no position


def test_whole_shares_rotate_as_members_do():
    tokens, rope = state(GROUPS), torch.randn(8, 16)
    share = torch.nn.functional.one_hot(tokens.index, 5).float()
    soft = tokens._replace(soft=Soft(share, 4))
    torch.testing.assert_close(mean_rotation(rope, soft, 1), mean_rotation(rope, tokens, 1))


def test_moving_all_patches_changes_nothing():
    """Without a class token, which has no position, angles that grow with the position: only differences count."""
    torch.manual_seed(0)
    block = eva.EvaBlock(32, 4, num_prefix_tokens=0)
    tokens, x = state(GROUPS, prefix=0), torch.randn(1, 4, 32)
    layer = MergeLayer(MERGERS["tome"], "keys", 0, 0.0, 32, 8)
    frequency = torch.tensor([1.0, 0.3, 0.1, 0.03])

    def output(place):
        angle = (place[:, None] * frequency).repeat_interleave(2, -1)
        rope = torch.cat([angle.sin(), angle.cos()], -1)
        return eva_block(block, x, tokens, 1, layer, tokens.size.log(), own=False, rope=rope)[0]

    place = torch.arange(8.0)
    torch.testing.assert_close(output(place + 11), output(place), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output(place * 2), output(place), atol=1e-3)


@pytest.mark.parametrize("option", [{"is_causal": True}, {"attn_mask": torch.ones(17, 17).tril().bool()}])
def test_what_unmerged_blocks_are_given_goes_to_their_attention(option):
    model = built("eva02")
    try:
        expected = model.forward_features(images(), **option)
    except TypeError:
        pytest.skip("this timm does not take it")
    assert torch.equal(wrap(model).forward_features(images(), **option), expected)
    assert not torch.allclose(expected, model.forward_features(images()), atol=1e-3)


def test_patches_are_compared_without_their_positions():
    """Two patches with the same content merge, wherever they are."""
    model = wrap(built("eva02"), r=1)
    x = torch.randn(1, 1 + PATCHES, 32)
    x[:, 1 + 13] = x[:, 1 + 2]
    tokens = initial_tokens(x, (4, 4))
    (given, *_), blocks = arguments_of_blocks(model), blocks_of(model)
    _, tokens = blocks.run(0, x, tokens, 1, **given)
    assert tokens.index[0, 1 + 13] == tokens.index[0, 1 + 2]


@pytest.mark.parametrize("method", ["tome", "dtem"])
@pytest.mark.parametrize("name", [name for name in ("eva02", "rope_mixed") if name in MODELS])
def test_images_with_dropped_patches_keep_their_own_positions(name, method):
    model = wrap(built(name, patch_drop_rate=0.25), method, r=3).train()
    out = model(images())
    out.sum().backward()
    assert out.isfinite().all() and model.patch_embed.proj.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", mostly_slow(NAMES, [name for name in NAMES if "base" not in name]))
def test_models_that_people_have(name):
    if not timm.is_model(name):
        pytest.skip("this timm does not have it")
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=112, depth=2, num_classes=3).eval()
    x = torch.randn(1, 3, 112, 112)
    before = model(x)
    assert torch.equal(wrap(model)(x), before)
    wrap(model, "tome", target_ratio=1.2)
    out, tokens = trace(model, x)
    assert out.shape == before.shape and tokens.size.shape[1] == tokens.index.shape[1] - sum(schedule_of(model))
    found = explain(model, x, "gradient_rollout", target=0)
    assert found.relevance.shape == (1, *blocks_of(model).layout()[0]) and found.relevance.isfinite().all()
