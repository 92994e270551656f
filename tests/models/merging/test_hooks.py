"""Every block calls its merge layer, merging or not; where nothing merges, the output is exactly the plain model's."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_model
from models.merging import wrap
from models.merging.layer import MergeLayer
from models.merging.wrapping.families import kind_of
from models.settings import UserError
from tests.models.merging.wrapped_models import (
    ALL,
    PATCHES,
    TINY,
    arguments_of_blocks,
    built,
    container,
    images,
    prefix_of,
)

OURS = {"vit": {}, "hybrid": {}, "conformer": {"base_channel": 8, "stem_stride": 1}}


def recorded(model):
    """Runs a model with a hook on every merge layer. Returns what the hooks saw, one list for each layer."""
    layers = [module for module in model.modules() if isinstance(module, MergeLayer)]
    seen = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output, calls=calls: calls.append((inputs, output)))
        for layer, calls in zip(layers, seen, strict=True)
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    return seen


def expect_attention(inputs):
    """What a hook receives describes the block's attention: rows of attention weights that sum to one."""
    x, tokens, _, attended = inputs
    q, k, bias, *_ = attended.scores
    assert attended.source.shape == x.shape and q.shape[2] == k.shape[2] == x.shape[1] == tokens.size.shape[1]
    weights = (q @ k.mT / q.shape[-1] ** 0.5 + (0 if bias is None else bias)).softmax(-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("r", [0, [0, 4, 0]])
@pytest.mark.parametrize("name", OURS)
def test_each_merge_layer_of_our_models_is_called(name, r):
    model = build_model(name, **TINY, **OURS[name], merge={"r": r}).eval()
    seen = recorded(model)
    assert [len(calls) for calls in seen] == [1, 1, 1]
    for ((inputs, (x, _)),) in seen:
        assert x.shape[1] == inputs[0].shape[1] - inputs[2]
        expect_attention(inputs)


@pytest.mark.parametrize("r", [0, [0, 4, 0]])
@ALL
def test_each_merge_layer_of_a_wrapped_model_is_called(name, r):
    model = wrap(built(name), r=r)
    seen = recorded(model)
    assert [len(calls) for calls in seen] == [1, 1, 1]
    for ((inputs, (x, _)),) in seen:
        assert x.shape[1] == inputs[0].shape[1] - inputs[2]
        expect_attention(inputs)


@pytest.mark.parametrize("name", ["deit", "beit_both", "eva02", "torchvision"])
def test_each_merge_layer_is_called_in_a_loop_over_the_blocks(name):
    model = wrap(built(name))
    calls = []
    for layer in container(model).merging:
        layer.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, prefix_of(model) + PATCHES, 32)
    for block, given in zip(container(model), arguments_of_blocks(model), strict=True):
        x = block(x, **given)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["deit", "beit", "eva02"])
def test_arguments_by_position_are_those_by_name(name):
    model = wrap(built(name))
    given, x = arguments_of_blocks(model)[0], torch.randn(2, prefix_of(model) + PATCHES, 32)
    outputs = [next(iter(container(model)))(x, **given), next(iter(container(model)))(x, *given.values())]
    assert torch.equal(*outputs)
    plain = container(model)[0](x, **given)
    assert torch.equal(outputs[0], plain)
    with pytest.raises(TypeError, match="block 0: unexpected argument 7; it takes x, "):
        next(iter(container(model)))(x, *[None] * len(kind_of(container(model)[0], "block 0").positional), 7)
    wrap(model, r=4)
    with pytest.raises(UserError, match="attn_mask: does not follow merged tokens"):
        next(iter(container(model)))(x, attn_mask=torch.zeros(x.shape[1], x.shape[1]))


@ALL
def test_what_a_hook_sees_gives_the_attention_s_output(name):
    """Queries, keys and bias are those of the block: with its values they give what its attention puts out."""
    model = wrap(built(name))
    values, outputs = [], []
    first = container(model)[0]
    attention = first.attn if hasattr(first, "attn") else first.self_attention
    attention.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    ((inputs, _),) = recorded(model)[0]
    q, k, bias, *_ = inputs[3].scores
    source = inputs[3].source
    if name == "torchvision":
        values = F.linear(source, attention.in_proj_weight, attention.in_proj_bias)[..., -32:]
        out, expected = attention.out_proj, outputs[0][0]
    else:
        values = attention.v_proj(source) if attention.qkv is None else attention.qkv(source)[..., -32:]
        if getattr(attention, "q_bias", None) is not None:
            values = values + attention.v_bias
        out, expected = nn.Sequential(getattr(attention, "norm", nn.Identity()), attention.proj), outputs[0]
    v = values.view(2, -1, 4, 8).transpose(1, 2)
    weights = (q @ k.mT / 8**0.5 + (0 if bias is None else bias)).softmax(-1)
    torch.testing.assert_close(out((weights @ v).transpose(1, 2).flatten(2)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["eval", "eval without gradients", "train"])
@ALL
def test_r0_is_exact_in_every_mode(name, mode, precision):
    """Also where libraries have faster kernels of their own for attention, which round differently."""
    model = built(name).train(mode == "train")
    outputs = []
    for tested in (model, wrap(copy.deepcopy(model))):
        torch.manual_seed(0)  # one of the models has stochastic depth
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.set_grad_enabled(mode != "eval without gradients"), autocast:
            outputs.append(tested(images()))
    assert torch.equal(*outputs)


def test_unfused_attention_is_exact_at_r0_too():
    model = built()
    for block in model.blocks:
        block.attn.fused_attn = False
    expected = model(images())
    assert torch.equal(wrap(model)(images()), expected)


def test_hooks_on_the_attention_run_until_something_is_merged():
    model = wrap(built(), r=[0, 4, 0])
    calls = []
    for number in range(3):
        model.blocks[number].attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    model(images())
    assert calls == [0]


def test_hooks_on_a_wrapped_block_itself_do_not_run():
    """As the documentation says: the block's parts are called, in a forward of their own."""
    model = wrap(built("deit"))
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    model.blocks[0].attn.register_forward_hook(lambda *_: calls.append("attention"))
    model(images())
    assert calls == ["attention"]
