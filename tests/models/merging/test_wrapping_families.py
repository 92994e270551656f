"""Merging in every family of ViTs: at r=0 nothing changes, nor where equal tokens merge; costs and position bias."""

import copy
import inspect

import numpy as np
import pytest
import torch
from timm.models import vision_transformer
from torch import nn

from engine.cost.macs import measure
from models import build_model
from models.formulas import formula_macs
from models.merging import MERGERS, Tokens, initial_tokens, unwrap, wrap
from models.merging.layer import MergeLayer
from models.merging.wrapping import blocks_of, schedule_of, trace
from models.merging.wrapping.equations import between_tokens
from models.merging.wrapping.families import KINDS, attention_width
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from tests.models.merging.wrapped_models import (
    ALL,
    DROPOUT,
    MODELS,
    PATCHES,
    TINY,
    arguments_of_blocks,
    built,
    container,
    images,
    prefix_of,
)


@ALL
def test_r0_is_the_model_itself_and_unwrap_gives_it_back(name):
    model = built(name)
    before, keys, blocks = model(images()), list(model.state_dict()), list(container(model).children())
    kind = type(container(model))
    assert wrap(model) is model
    assert torch.equal(model(images()), before)
    wrap(model, r=4)
    assert not torch.allclose(model(images()), before, atol=1e-4)
    assert list(model.state_dict()) == keys and all(a is b for a, b in zip(container(model), blocks)) is False
    assert [container(model)[i] for i in range(3)] == blocks
    assert unwrap(model) is model
    assert type(container(model)) is kind and list(container(model).children()) == blocks
    assert list(model.state_dict()) == keys and torch.equal(model(images()), before)


@ALL
def test_exactly_r_patches_fewer_and_prefix_tokens_protected(name):
    model, prefix = wrap(built(name), r=[0, 5, 3]), prefix_of(MODELS[name]())
    _, tokens = trace(model, images())
    assert schedule_of(model) == [0, 5, 3]
    assert tokens.index.shape == (2, prefix + PATCHES) and tokens.size.shape == (2, prefix + PATCHES - 8)
    assert torch.equal(tokens.index[:, :prefix], torch.arange(prefix).expand(2, -1))
    assert (tokens.size[:, :prefix] == 1).all() and (tokens.size.sum(1) == prefix + PATCHES).all()
    assert not blocks_of(model).unmerge._forward_hooks


def tokens_in_pairs(prefix):
    """(2, prefix + 16, 32): patches 2i and 2i + 1 are equal. They are neighbours in a row of the grid."""
    x = torch.randn(2, prefix + PATCHES // 2, 32, generator=torch.Generator().manual_seed(2))
    return torch.cat([x[:, :prefix], x[:, prefix:].repeat_interleave(2, dim=1)], dim=1)


def forget_columns(model):
    """Makes relative position biases depend on the difference of rows alone: equal for a pair."""
    for name, table in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            rows = table.data[:-3].view(7, 7, 4)
            table.data[:-3] = rows[:, :1].expand(7, 7, 4).reshape(49, 4)


def paired_places(arguments):
    """Gives the patches 2i and 2i + 1 one rotation, where patches are rotated."""
    if "rope" not in arguments:
        return arguments
    return {"rope": arguments["rope"][..., ::2, :].repeat_interleave(2, dim=-2)}


@ALL
def test_merging_equal_tokens_changes_nothing(name):
    """Attention with the size bias is attention over the duplicates, for every kind of block."""
    model = built(name)
    forget_columns(model)
    x = tokens_in_pairs(prefix_of(model))
    given = [paired_places(arguments) for arguments in arguments_of_blocks(model)]

    def through_blocks():
        out = x
        for block, arguments in zip(container(model), given, strict=True):
            out = block(out, **arguments)
        return out

    expected = through_blocks()
    wrap(model, r=[5, 0, 0])
    torch.testing.assert_close(through_blocks(), expected, atol=2e-5, rtol=1e-4)
    wrap(model, r=[5, 0, 0], prop_attn=False)
    assert not torch.allclose(through_blocks(), expected, atol=1e-3)


@ALL
def test_a_block_s_equations_are_the_block_with_its_dropout(name):
    model = built(name, **DROPOUT[name]).train()
    x = torch.randn(1, prefix_of(model) + PATCHES, 32)  # one image: torchvision drops out in an order of its own
    layer = MergeLayer(MERGERS["tome"], "keys", 1, 0.0, 32, 8)
    for block, given in zip(container(model), arguments_of_blocks(model), strict=True):
        torch.manual_seed(3)
        expected = block(x, **given)
        torch.manual_seed(3)
        out, _ = KINDS[type(block)].run(block, x, initial_tokens(x), 0, layer, None, own=False, **given)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, block.eval()(x, **given), atol=1e-2)


@pytest.mark.skipif(
    "gated" not in inspect.signature(vision_transformer.Attention).parameters, reason="this timm has no gated attention"
)
def test_gated_and_normed_attention():
    model = built(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True)
    for block in model.blocks:
        block.attn = vision_transformer.Attention(32, 4, gated=True, scale_norm=True, norm_layer=nn.LayerNorm).eval()
    x = tokens_in_pairs(1)
    expected = model.blocks(x)
    torch.testing.assert_close(wrap(model, r=[8, 0, 0]).blocks(x), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("r", [1, 3, {"first": 5, "last": 1}, [0, 8, 0]])
def test_equals_our_own_vit(r):
    ours = build_model("vit", **{**TINY, "merge": {"method": "tome", "r": r}}).eval()
    theirs = built()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    wrap(theirs, r=r)
    out, tokens = trace(theirs, images())
    features, state = ours.forward_features(images())
    torch.testing.assert_close(out, ours(images()), atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens.index, state.index) and torch.equal(tokens.size, state.size)
    each = features.gather(1, state.index.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(theirs.forward_features(images()), each, atol=1e-5, rtol=1e-5)


def test_costs_what_the_formula_says():
    settings = check(ViTSettings, {**TINY, "merge": {"r": 3}})
    assert measure(wrap(built(), r=3), (3, 32, 32)).by_kind == formula_macs(settings)


@pytest.mark.parametrize("name", ["deit", "beit_both", "eva02", "torchvision"])
@pytest.mark.parametrize("method", MERGERS)
def test_every_method_goes_through(method, name):
    model = wrap(built(name), method=method, r=5)
    expected = PATCHES - sum(schedule_of(model))
    out, tokens = trace(model, images())
    assert out.shape == (2, 5) and out.isfinite().all()
    assert tokens.size.shape[1] == prefix_of(model) + expected and (expected < PATCHES or method == "none")
    for image in range(2):
        torch.testing.assert_close(model(images()[image : image + 1])[0], out[image], atol=1e-5, rtol=1e-5)
    model.train()(images()).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "merging" not in name}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_dtem_s_heads_learn_and_stay_when_wrapped_again():
    model = wrap(built(), method="dtem", r=4)
    added = sorted(set(model.state_dict()) - set(built().state_dict()))
    assert added == sorted(f"blocks.merging.{i}.head.{part}" for i in range(3) for part in ("bias", "weight"))
    model.train()(images()).square().sum().backward()
    heads = [layer.head for layer in model.blocks.merging]
    assert all(head.weight.grad.abs().sum() > 0 for head in heads[:-1])  # nothing attends after the last merge
    wrap(model, method="dtem", r=2)
    assert [layer.head for layer in model.blocks.merging] == heads
    assert sorted(unwrap(model).state_dict()) == sorted(built().state_dict())


@ALL
def test_the_learned_head_is_as_wide_as_an_attention_head(name):
    model = wrap(built(name), metric="learned", r=2)
    assert attention_width(container(model)[0]) == 8 == blocks_of(model).merging[0].head.out_features
    assert model(images()).isfinite().all()


def test_pooling_weighs_tokens_by_size():
    model = wrap(built("average"), r=4)
    seen = []
    hook = blocks_of(model).unmerge.register_forward_hook(lambda module, given, output: seen.append(given))
    pooled = model.forward_head(model.forward_features(images()), pre_logits=True)
    hook.remove()
    ((x, tokens),) = seen
    assert x.shape[1] == 4
    mean = (x * tokens.size.unsqueeze(-1)).sum(1) / PATCHES
    torch.testing.assert_close(pooled, model.fc_norm(mean), atol=1e-5, rtol=1e-5)


def test_schedules_settings_and_another_plan():
    model = wrap(built(), keep={"rate": 0.5, "blocks": [1, 3]})
    assert schedule_of(model) == [8, 0, 4]
    blocks_of(model).plan = [2, 2, 2]
    assert trace(model, images())[1].size.shape[1] == 17 - 6
    assert schedule_of(wrap(model, r={"train": [0, 6]})) == [3, 3, 3]
    assert schedule_of(wrap(model, r=100)) == [8, 4, 2]  # what the method can
    blocks_of(model).plan = [2, 2]
    with pytest.raises(UserError, match="plan has 2 entries; the model has 3 blocks"):
        model(images())


def test_images_of_any_size():
    model = wrap(built(dynamic_img_size=True), r=4)
    assert trace(model, images(size=48))[1].size.shape == (2, 37 - 12)
    assert model.forward_features(images(size=48)).shape == (2, 37, 32)


@pytest.mark.parametrize("method", ["pool", "grid"])
def test_methods_that_keep_a_grid_follow_set_input_size(method):
    models = [model for model in (built("deit"), built("beit")) if hasattr(model, "set_input_size")]  # Beit: newer timm
    for model in models:
        wrap(model, method=method, r=6)
        _, tokens = trace(model, images())
        assert np.prod(tokens.grid) == tokens.size.shape[1] - 1 < PATCHES
        model.set_input_size(img_size=(16, 64))  # 2 x 8 patches in place of 4 x 4
        _, tokens = trace(model, torch.randn(1, 3, 16, 64))
        fresh = wrap(unwrap(copy.deepcopy(model)), method=method, r=6)
        assert tokens.grid == trace(fresh, torch.randn(1, 3, 16, 64))[1].grid


# Relative position bias


def state(groups, inputs):
    index = torch.zeros(1, inputs, dtype=torch.long)
    for token, members in enumerate(groups):
        index[0, members] = token
    return Tokens(index, torch.tensor([[float(len(g)) for g in groups]]))


def test_a_position_bias_follows_merged_tokens_as_the_mean_over_their_members():
    rng = np.random.default_rng(0)
    bias = torch.from_numpy(rng.standard_normal((3, 7, 7)).astype(np.float32)).requires_grad_()
    groupings = [[[0], [3, 1, 6], [2], [4, 5]], [[0], [1], [2, 4, 5], [3, 6]]]
    states = [state(groups, 7) for groups in groupings]
    tokens = Tokens(torch.cat([s.index for s in states]), torch.cat([s.size for s in states]))
    answer = between_tokens(bias, tokens)
    assert answer.shape == (2, 3, 4, 4)
    for image, groups in enumerate(groupings):
        for head in range(3):
            for row, i in enumerate(groups):
                for column, j in enumerate(groups):
                    mean = sum(bias[head, a, b] for a in i for b in j) / (len(i) * len(j))
                    torch.testing.assert_close(answer[image, head, row, column], mean)
    answer.sum().backward()
    expected = torch.zeros(7, 7)
    for groups in groupings:
        for i in groups:
            for j in groups:
                for a in i:
                    for b in j:
                        expected[a, b] += 1 / (len(i) * len(j))
    torch.testing.assert_close(bias.grad, expected.expand(3, 7, 7))


def test_a_soft_state_with_whole_shares_gives_the_same_bias():
    from models.merging.tokens import Soft

    bias, tokens = torch.randn(3, 7, 7), state([[0], [3, 1, 6], [2], [4, 5]], 7)
    share = nn.functional.one_hot(tokens.index, 4).float()
    soft = tokens._replace(soft=Soft(share, 4))
    torch.testing.assert_close(between_tokens(bias, soft), between_tokens(bias, tokens))


def test_beit_trains_with_a_soft_method():
    model = wrap(built("beit_both"), method="dtem", r=3).train()
    model(images()).sum().backward()
    assert model.blocks[2].attn.relative_position_bias_table.grad.abs().sum() > 0
