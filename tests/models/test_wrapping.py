"""Merging in other people's ViTs: at r=0 nothing changes, nor where equal tokens merge; and what it must survive."""

import copy
import inspect
import io

import numpy as np
import pytest
import timm.layers
import timm.models
import torch
import torch.utils.checkpoint
from timm.models import beit, vision_transformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import vision_transformer as torchvision_vit

from engine.analytic import formula_macs
from engine.complexity import measure
from models import build_model
from models.merging import MERGERS, Tokens, initial_tokens, unwrap, wrap
from models.merging.families import KINDS, SERVED, attention_width, between_tokens
from models.merging.layer import MergeLayer
from models.merging.wrapping import MergingBlocks, blocks_of, schedule_of, trace
from models.settings import UserError, check
from models.vit import ViTSettings

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
PATCHES = 16
BEIT = {**TINY, "init_values": 0.5}


def torchvision_tiny(depth=3, **options):
    return torchvision_vit.VisionTransformer(
        image_size=32, patch_size=8, num_layers=depth, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5, **options
    )


MODELS = {
    "deit": lambda **o: VisionTransformer(**{**TINY, **o}),
    "deit3": lambda **o: VisionTransformer(**{**TINY, **o}, init_values=0.5, no_embed_class=True),
    "distilled": lambda **o: VisionTransformerDistilled(**{**TINY, **o}),
    "clip": lambda **o: VisionTransformer(**{**TINY, **o}, pre_norm=True, act_layer="quick_gelu"),
    "registers": lambda **o: VisionTransformer(**{**TINY, **o}, reg_tokens=3, no_embed_class=True, init_values=0.5),
    "average": lambda **o: VisionTransformer(**{**TINY, **o}, class_token=False, global_pool="avg"),
    "map": lambda **o: VisionTransformer(**{**TINY, **o}, class_token=False, global_pool="map", reg_tokens=1),
    "qk_norm": lambda **o: VisionTransformer(**{**TINY, **o}, qk_norm=True, drop_path_rate=0.2),
    "post_norm": lambda **o: VisionTransformer(**{**TINY, **o}, block_fn=vision_transformer.ResPostBlock),
    "beit": lambda **o: beit.Beit(**{**BEIT, **o}, use_rel_pos_bias=True, use_abs_pos_emb=False),
    "beit_shared": lambda **o: beit.Beit(**{**BEIT, **o}, use_shared_rel_pos_bias=True, global_pool="token"),
    "beit_both": lambda **o: beit.Beit(**{**TINY, **o}, use_rel_pos_bias=True, use_shared_rel_pos_bias=True),
    "torchvision": torchvision_tiny,
}
ALL = pytest.mark.parametrize("name", MODELS)


def built(name="deit", seed=0, **options):
    """A model without a zero anywhere: tables, biases and heads that start at zero would hide mistakes."""
    torch.manual_seed(seed)
    model = MODELS[name](**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def container(model):
    return model.encoder.layers if hasattr(model, "encoder") else model.blocks


def prefix_of(model):
    return getattr(model, "num_prefix_tokens", 1)


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


@ALL
def test_merging_equal_tokens_changes_nothing(name):
    """Attention with the size bias is attention over the duplicates, for every kind of block."""
    model = built(name)
    forget_columns(model)
    x = tokens_in_pairs(prefix_of(model))
    given = {}
    if getattr(model, "rel_pos_bias", None) is not None:
        given = {"shared_rel_pos_bias": model.rel_pos_bias()}
    expected = x
    for block in container(model):
        expected = block(expected, **given)
    wrap(model, r=[5, 0, 0])
    torch.testing.assert_close(container(model)(x, **given), expected, atol=2e-5, rtol=1e-4)
    wrap(model, r=[5, 0, 0], prop_attn=False)
    assert not torch.allclose(container(model)(x, **given), expected, atol=1e-3)


DROPOUT = {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3}


@ALL
def test_a_block_s_equations_are_the_block_with_its_dropout(name):
    options = {"dropout": 0.3, "attention_dropout": 0.3} if name == "torchvision" else dict(DROPOUT)
    if name == "qk_norm":
        del options["drop_path_rate"]
    model = built(name, **options).train()
    x = torch.randn(1, prefix_of(model) + PATCHES, 32)  # one image: torchvision drops out in an order of its own
    layer = MergeLayer(MERGERS["tome"], "keys", 1, 0.0, 32, 8)
    shared = getattr(model, "rel_pos_bias", None)
    given = {} if shared is None else {"shared_rel_pos_bias": shared()}
    for block in container(model):
        torch.manual_seed(3)
        expected = block(x, **given)
        torch.manual_seed(3)
        out, _ = KINDS[type(block)].run(block, x, initial_tokens(x), 0, layer, None, **given)
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


@pytest.mark.parametrize("name", ["deit", "beit_both", "torchvision"])
@pytest.mark.parametrize("method", MERGERS)
def test_every_method_goes_through(method, name):
    model = wrap(built(name), method=method, r=5)
    expected = PATCHES - sum(schedule_of(model))
    out, tokens = trace(model, images())
    assert out.shape == (2, 5) and out.isfinite().all()
    assert tokens.size.shape[1] == 1 + expected and (expected < PATCHES or method == "none")
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


# Loops over the blocks


@pytest.mark.parametrize("name", ["deit", "beit_both"])
def test_intermediates_are_maps_of_all_patches(name):
    model = built(name)
    plain = model.forward_intermediates(images(), intermediates_only=True)
    wrap(model)
    for a, b in zip(model.forward_intermediates(images(), intermediates_only=True), plain, strict=True):
        assert torch.equal(a, b)
    wrap(model, r=4)
    final, maps = model.forward_intermediates(images(), return_prefix_tokens=True)
    assert torch.equal(final, model.forward_features(images()))
    counts = [len(torch.unique(m.flatten(2)[0], dim=1).T) for m, _ in maps]
    assert counts == [12, 8, 4] and all(m.shape == (2, 32, 4, 4) for m, _ in maps)
    picked = model.forward_intermediates(images(), indices=[1], intermediates_only=True, stop_early=True)
    assert len(picked) == 1 and torch.equal(picked[0], maps[1][0])
    assert isinstance(model.blocks[:2], MergingBlocks)
    if hasattr(model, "get_intermediate_layers"):
        assert torch.equal(model.get_intermediate_layers(images(), 1, reshape=True)[0], maps[2][0])
    model.prune_intermediate_layers([1], prune_head=False)
    assert torch.equal(model.forward_intermediates(images())[1][-1], maps[1][0])
    assert len(model.blocks) == 2 and len(unwrap(model).blocks) == 2


def gradients(model):
    model.zero_grad()
    model.train()(images()).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(not hasattr(timm.layers, "use_reentrant_ckpt"), reason="this timm checkpoints in the old way alone")
@pytest.mark.parametrize("name", ["registers", "beit_both"])
@pytest.mark.parametrize("method", ["tome", "dtem"])
def test_gradient_checkpointing_changes_nothing(name, method):
    model = wrap(built(name), method=method, r=[0, 4, 4])
    plain = gradients(model)
    model.set_grad_checkpointing(True)
    ran = []
    hook = model.blocks[2].norm2.register_forward_hook(lambda *_: ran.append(1))
    checkpointed = gradients(model)
    hook.remove()
    assert len(ran) == 2  # forward, and again for the backward pass
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, atol=1e-6, rtol=1e-5)


def test_reentrant_checkpoints_are_refused_where_they_would_lose_gradients():
    first, second, _ = wrap(built(), r=4).blocks
    x = torch.randn(1, 17, 32, requires_grad=True)
    x = torch.utils.checkpoint.checkpoint(first, x, use_reentrant=True)
    with pytest.raises(UserError, match="block 1: gradient checkpointing with use_reentrant=True"):
        torch.utils.checkpoint.checkpoint(second, x, use_reentrant=True)


def test_a_loop_that_merged_tokens_cannot_follow_is_refused():
    model = wrap(built(), r=4)
    x = torch.randn(1, 17, 32)
    first, second, _ = model.blocks
    with pytest.raises(UserError, match="block 1: its input is not the output of the block before it"):
        second(first(x) + 1)
    first, _, third = model.blocks
    first(x)
    with pytest.raises(UserError, match="block 2: merged tokens go through every block, in order"):
        third(x)


def test_a_loop_sees_the_blocks_parts():
    model = wrap(built(), r=4)
    for block in model.blocks:
        block.attn.fused_attn = False
        block.mark = 1
    assert all(not model.blocks[i].attn.fused_attn and model.blocks[i].mark == 1 for i in range(3))


@pytest.mark.skipif(
    "attn_mask" not in inspect.signature(VisionTransformer.forward).parameters, reason="this timm takes no mask"
)
def test_a_mask_is_refused_once_tokens_merge():
    model, mask = built(), torch.zeros(17, 17)
    expected = model(images(), attn_mask=mask)
    assert torch.equal(wrap(model)(images(), attn_mask=mask), expected)
    with pytest.raises(UserError, match="attn_mask: does not follow merged tokens"):
        wrap(model, r=4)(images(), attn_mask=mask)


# What it survives


@pytest.mark.parametrize("name", ["deit3", "beit_shared", "torchvision"])
def test_copies_pickles_and_state_dicts(name):
    model = wrap(built(name), r=4)
    expected = model(images())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
        container(model)[0].requires_grad_(False)
    blocks_of(model).plan = [0, 0, 0]
    assert torch.equal(twin(images()), expected) and schedule_of(twin) == [4, 4, 4]
    assert container(twin)[0] is not container(model)[0]
    other = wrap(built(name, seed=5), r=4)
    other.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(other(images()), expected)
    unwrap(other).load_state_dict(twin.state_dict(), strict=True)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images()), expected)


@pytest.mark.parametrize("name", ["distilled", "beit"])
def test_distributed_data_parallel(name, tmp_path):
    alone = gradients(wrap(built(name), r=4))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(wrap(built(name), r=4))
        together = gradients(model)
    finally:
        torch.distributed.destroy_process_group()
    assert {f"module.{key}" for key in alone} == together.keys()
    assert all(torch.equal(together[f"module.{key}"], value) for key, value in alone.items())


@pytest.mark.parametrize("first", ["lora", "wrap"])
def test_lora(first):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    model = built()
    plain = wrap(copy.deepcopy(model), r=4)(images())
    torch.manual_seed(0)
    if first == "wrap":
        adapted = peft.get_peft_model(wrap(model, r=4), config).eval()
    else:
        adapted = wrap(peft.get_peft_model(model, config), r=4).eval()
    assert trace(adapted, images())[1].size.shape[1] == 17 - 12
    out = adapted(images())
    assert not torch.allclose(out, plain, atol=1e-3)
    adapted.train()(images()).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained and all("lora" in name for name in trained)
    assert sum("lora_B" in name for name in trained) == 3
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted.eval()(images()), plain)
    torch.testing.assert_close(adapted.merge_and_unload()(images()), out, atol=1e-5, rtol=1e-5)


def test_lora_in_place_of_torchvision_s_attention_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["self_attention"])
    adapted = peft.get_peft_model(wrap(built("torchvision"), r=4), config)
    with pytest.raises(UserError, match="block encoder_layer_0.self_attention is a MultiheadAttention; merging knows"):
        adapted(images())


def test_compiles_as_one_graph():
    model = wrap(built(depth=2), r=[3, 0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()), model(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "strict"), [("deit", False), ("beit_both", True), ("torchvision", False)])
def test_exports(name, strict):
    """Strict: Python is not run but read, as by torch.compile, the loop over the blocks too."""
    model = wrap(built(name, depth=2), r=[3, 0])
    exported = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), strict=strict).module()
    torch.testing.assert_close(exported(images()), model(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qk_norm", "beit_both", "torchvision"])
def test_half_precision(name, dtype):
    model = wrap(built(name).to(dtype), r=4)
    out = model(images().to(dtype))
    assert out.dtype == dtype and out.isfinite().all()
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.train()(images()).sum().backward() is None
        assert model.eval()(images()).isfinite().all()


# What is refused


def with_blocks(block_fn, **options):
    return VisionTransformer(**TINY, block_fn=block_fn, **options)


class OwnFlow(VisionTransformer):
    def forward_features(self, x):
        return super().forward_features(x)[:, :, :]


class OwnBlock(vision_transformer.Block):
    pass


def changed(change):
    model = built()
    change(model)
    return model


def replace_forward(model):
    model.blocks[1].attn.forward = lambda x, **given: x


def add_part(model):
    model.blocks[1].attn.relative = nn.Linear(1, 1)


REFUSED = {
    "SwinTransformer attends inside windows": lambda: timm.models.SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4
    ),
    "ConvNeXt convolves": lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    "Eva rotates queries and keys": lambda: timm.models.Eva(**TINY, use_rot_pos_emb=True),
    "VisionTransformer merges by itself": lambda: build_model("vit", **TINY),
    f"Linear is not a model that merging knows; wrap takes {SERVED}": lambda: nn.Linear(1, 1),
    "OptimizedModule holds the model already": lambda: torch.compile(built()),
    "blocks.0 is a ParallelScalingBlock, which computes attention and MLP side by side": lambda: with_blocks(
        vision_transformer.ParallelScalingBlock
    ),
    "blocks.0 is a ParallelThingsBlock": lambda: with_blocks(vision_transformer.ParallelThingsBlock),
    "blocks.0 is a OwnBlock, which merging does not know": lambda: with_blocks(OwnBlock),
    "OwnFlow has a forward_features of its own": lambda: OwnFlow(**TINY),
    "blocks.1.attn has hooks or a forward of its own": lambda: changed(replace_forward),
    "blocks.2 has hooks": lambda: changed(lambda m: m.blocks[2].register_forward_hook(lambda *_: None)),
    "blocks.1.attn has relative, which merging does not know": lambda: changed(add_part),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_reason(line):
    model = REFUSED[line]()
    with pytest.raises(UserError) as error:
        wrap(model, r=2)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(vision_transformer, "DiffAttention"), reason="this timm has no differential attention")
def test_differential_attention_is_refused():
    with pytest.raises(UserError, match="blocks.0.attn is a DiffAttention; merging knows .*Attention"):
        wrap(VisionTransformer(**TINY, attn_layer="diff"), r=2)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("average", {"method": "topk", "r": 2}, "this VisionTransformer has no class token"),
        ("map", {"method": "topk", "r": 2}, "has no class token"),  # its first token is a register
        ("deit", {"r": [1, 2]}, "merge.r has 2 entries; the model has 3 blocks"),
        ("deit", {"target_gmacs": 1.0}, "merge.target_gmacs = 1.0: wrap solves no budget"),
        ("deit", {"target_ratio": 2.0}, "merge.target_ratio = 2.0: wrap solves no budget"),
        ("deit", {"method": "tomme"}, "merge.method = 'tomme': did you mean tome"),
        ("deit", {"keth": 3}, "merge.keth: unknown key; did you mean kth"),
        ("deit", {"keep": {"rate": 0.5, "blocks": [4]}}, "merge.keep.blocks = [4]: no block 4; use 1 to 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, options, line):
    model = built(name)
    before = container(model)
    with pytest.raises(UserError) as error:
        wrap(model, **options)
    assert line in str(error.value) and container(model) is before


def test_a_grid_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="merge.method = 'pool': it keeps a grid, and this VisionTransformer takes"):
        wrap(built(dynamic_img_size=True), method="pool", r=12)


def test_only_wrapped_models_can_be_unwrapped_and_traced():
    for function in (unwrap, schedule_of, blocks_of, lambda model: trace(model, images())):
        with pytest.raises(UserError, match="this VisionTransformer is not wrapped"):
            function(built())


@ALL
def test_the_learned_head_is_as_wide_as_an_attention_head(name):
    model = wrap(built(name), metric="learned", r=2)
    assert attention_width(container(model)[0]) == 8 == blocks_of(model).merging[0].head.out_features
    assert model(images()).isfinite().all()
