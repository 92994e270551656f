"""Feature maps of wrapped models, by timm's own interfaces: one value for each patch, whatever was merged."""

import pytest
import timm
import torch

from models.merging import wrap
from models.merging.tokens import unmerge
from models.merging.wrapping import blocks_of
from tests.models.merging.wrapped_models import MODELS, built, images, prefix_of

DENSE = [name for name in MODELS if hasattr(built(name), "forward_intermediates")]


def states_of(model):
    """The tokens and their state after each merge layer of one pass."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, given, output: seen.append(output[1]))
        for layer in blocks_of(model).merging
    ]
    model(images())
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_maps_of_any_block(name, stop_early):
    model = built(name)
    maps = model.forward_intermediates(images(), indices=[0, 1], intermediates_only=True, stop_early=stop_early)
    wrap(model)
    same = model.forward_intermediates(images(), indices=[0, 1], intermediates_only=True, stop_early=stop_early)
    assert all(torch.equal(a, b) for a, b in zip(same, maps, strict=True))
    wrap(model, r=[5, 4, 0])
    merged = model.forward_intermediates(images(), indices=[0, 1], intermediates_only=True, stop_early=stop_early)
    states, prefix = states_of(model), prefix_of(model)
    for values, tokens, plain in zip(merged, states, maps, strict=False):
        assert values.shape == plain.shape == (2, 32, 4, 4)
        rows = values.flatten(2).mT
        tokens_of = torch.zeros(2, tokens.size.shape[1], 32)
        tokens_of.scatter_(1, tokens.index[:, prefix:, None].expand(-1, -1, 32), rows)
        assert torch.equal(unmerge(tokens_of, tokens, prefix), rows)  # patches of one token have one value
        assert len(rows[0].unique(dim=0)) == tokens.size.shape[1] - prefix  # and tokens have different ones


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_features_only(name):
    size = timm.get_pretrained_cfg(name).input_size[1]
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True, out_indices=(1, 3), depth=4).eval()
    with torch.no_grad():
        plain = net(torch.zeros(1, 3, size, size))
        wrap(net.model, "tome", r=8)
        maps = net(torch.zeros(1, 3, size, size))
    assert [tuple(x.shape) for x in maps] == [tuple(x.shape) for x in plain]
    assert all(x.isfinite().all() for x in maps)
