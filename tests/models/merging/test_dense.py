"""Feature maps of wrapped models, by their libraries' own interfaces: one value for each patch, whatever was merged.

The maps of transformers' models (`hidden_states`) are tested in test_huggingface.py.
"""

import pytest
import timm
import torch

from models import build_model
from models.interface import last_tokens, trace_tokens
from models.merging import wrap
from tests.models.merging.wrapped_models import ALL, MODELS, after_blocks, built, images, prefix_of

LAST_ALONE = {"torchvision"}  # families without an interface for maps of any block
DENSE = [name for name in MODELS if name not in LAST_ALONE]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}


def pulled_back(x, tokens, prefix):
    """The tokens of x (B, T, C) at the patches that they stand for, (B, N, C), one by one."""
    return torch.stack([torch.stack([x[b, t] for t in tokens.index[b, prefix:].tolist()]) for b in range(len(x))])


def test_every_family_that_has_maps_of_any_block_is_tried():
    assert [name for name in MODELS if hasattr(built(name), "forward_intermediates")] == DENSE


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_maps_of_any_block(name, stop_early):
    model, indices = built(name), [0, 1] if stop_early else [0, 1, 2]
    asked = {"indices": indices, "intermediates_only": True, "stop_early": stop_early}
    maps = model.forward_intermediates(images(), **asked)
    wrap(model)
    same = model.forward_intermediates(images(), **asked)
    assert all(torch.equal(a, b) for a, b in zip(same, maps, strict=True))
    wrap(model, r=[5, 4, 2])
    merged, states = after_blocks(lambda: model.forward_intermediates(images(), **asked))
    prefix = prefix_of(model)
    for values, (x, tokens), plain, left in zip(merged, states, maps, (11, 7, 5), strict=False):
        assert values.shape == plain.shape == (2, 32, 4, 4)
        rows = values.flatten(2).mT
        assert torch.equal(rows, pulled_back(x, tokens, prefix))  # to the last bit
        assert len(rows[0].unique(dim=0)) == tokens.size.shape[1] - prefix == left


@ALL
def test_the_map_of_the_last_block(name):
    """By the function that works on every family."""
    model = wrap(built(name), r=[5, 4, 2])
    with last_tokens(model) as found:
        _, states = after_blocks(lambda: model(images()))
    x, tokens = states[-1]
    assert torch.equal(found[-1], pulled_back(x, tokens, 0)) and tokens.size.shape[1] == prefix_of(model) + 5


@pytest.mark.parametrize("name", ["vit", "hybrid", "conformer"])
def test_the_last_tokens_of_ours(name):
    """They give tokens and their state, which says where each belongs."""
    options = {"base_channel": 8, "stem_stride": 1} if name == "conformer" else {}
    model = build_model(name, **SMALL, **options, num_classes=5, merge={"method": "tome", "r": [5, 4, 2]}).eval()
    x, tokens = model.forward_features(images())
    rows = pulled_back(x, tokens, 1)
    assert rows.shape == (2, 16, 32) and len(rows[0].unique(dim=0)) == 5
    assert torch.equal(trace_tokens(model, images())[0].index, tokens.index)
    if name != "conformer":
        vit = getattr(model, "vit", model)
        with last_tokens(model) as found:
            model(images())
        assert torch.equal(vit.norm(found[-1])[:, 1:], rows)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
    ],
)
def test_features_only(name):
    """timm's wrapper for dense heads, whose model merges: its maps are those of `forward_intermediates`."""
    if not timm.is_model(name):
        pytest.skip("this timm has no such model")
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True, out_indices=(0, 2), **SMALL).eval()
    with torch.no_grad():
        plain = net(images())
        wrap(net.model)
        assert all(torch.equal(a, b) for a, b in zip(net(images()), plain, strict=True))
        wrap(net.model, "tome", r=[5, 4, 2])
        maps, states = after_blocks(lambda: net(images()))
    prefix = net.model.num_prefix_tokens
    for values, (x, tokens), left in zip(maps, states[::2], (11, 5), strict=True):
        assert values.shape == (2, 32, 4, 4)
        assert torch.equal(values.flatten(2).mT, pulled_back(x, tokens, prefix))
        assert tokens.size.shape[1] == prefix + left
