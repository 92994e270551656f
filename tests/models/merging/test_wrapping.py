"""What wrapped models must survive: loops over the blocks, copies, compilers, LoRA."""

import copy
import inspect
import io
import pickle

import pytest
import timm.layers
import torch
import torch.utils.checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.merging import unwrap, wrap
from models.merging.wrapping import MergingBlocks, blocks_of, schedule_of, trace
from models.settings import UserError
from tests.models.merging.wrapped_models import built, container, gradients, images

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


def test_a_loop_s_steps_can_be_copied_and_pickled():
    steps = list(wrap(built(), r=4).blocks)
    assert copy.copy(steps[0]).attn is steps[0].attn
    x = torch.randn(1, 17, 32)
    twins = pickle.loads(pickle.dumps(steps))
    assert torch.equal(twins[1](twins[0](x)), steps[1](steps[0](x)))
    assert not hasattr(steps[0], "__nothing__")


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


def test_blocks_that_share_weights_all_stay():
    model = built()
    first, second, _ = model.blocks
    model.blocks = nn.Sequential(first, first, second, first)
    expected, keys = model(images()), list(model.state_dict())
    assert torch.equal(wrap(model)(images()), expected) and len(model.blocks) == 4
    assert trace(wrap(model, r=3), images())[1].size.shape[1] == 17 - 12
    assert list(model.state_dict()) == keys
    assert torch.equal(unwrap(model)(images()), expected) and list(model.blocks) == [first, first, second, first]


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
