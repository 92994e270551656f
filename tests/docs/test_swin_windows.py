"""docs/results/swin/windows.py computes what the libraries compute, and merged tokens attend as their duplicates do."""

import importlib.util
import sys

import pytest
import timm.models
import torch
from torchvision.models import swin_transformer as torchvision_swin

from tests.paths import ROOT

FILE = ROOT / "docs" / "results" / "swin" / "windows.py"
TIMM = {"img_size": 28, "patch_size": 2, "embed_dim": 16, "depths": (3,), "num_heads": (2,), "window_size": 7}
TORCHVISION = {"patch_size": [2, 2], "embed_dim": 16, "depths": [3], "num_heads": [2], "window_size": [7, 7]}
MODELS = {
    "timm": lambda: timm.models.SwinTransformer(**TIMM),
    "timm v2": lambda: timm.models.SwinTransformerV2(**TIMM),
    "torchvision": lambda: torchvision_swin.SwinTransformer(**TORCHVISION),
    "torchvision v2": lambda: torchvision_swin.SwinTransformer(
        **TORCHVISION, block=torchvision_swin.SwinTransformerBlockV2
    ),
}


@pytest.fixture(scope="module")
def windows():
    spec = importlib.util.spec_from_file_location("swin_windows", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def built(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def blocks_of(windows, model):
    ((module, name),) = windows.stages_of(model)
    return getattr(module, name)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_cells_without_merging_are_the_model(windows, name):
    model, images = built(name), torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(windows.staged(model, (1,), None)(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("bias", ["mean", "first"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merging_equal_tokens_changes_nothing(windows, name, bias, start):
    """Cells of equal patches. Position biases differ inside a cell, so they are made zero."""
    model = built(name)
    for key, parameter in model.named_parameters():
        if key.endswith(("relative_position_bias_table", "cpb_mlp.2.weight")):
            parameter.zero_()
    cell = torch.tensor([0, 1, 2, 3]).repeat_interleave(torch.tensor([3, 4, 3, 4]))
    x = torch.randn(2, 4, 4, 16)[:, cell][:, :, cell]
    expected = x
    for block in blocks_of(windows, model):
        expected = block(expected)
    (merging,) = blocks_of(windows, windows.staged(model, (1,), start, bias=bias))
    torch.testing.assert_close(merging(x), expected, atol=1e-4, rtol=1e-4)
    x = torch.randn(2, 14, 14, 16)
    assert not torch.allclose(merging(x), windows.MergedStage(blocks_of(windows, model), None)(x), atol=1e-2)


@torch.no_grad()
def test_merging_in_each_block_restores_the_map(windows):
    model = built("timm v2")
    cell = torch.arange(2).repeat_interleave(7)  # equal in windows, not in shifted ones
    x = torch.randn(1, 2, 2, 16)[:, cell][:, :, cell]
    plain, (each,) = blocks_of(windows, model), blocks_of(windows, windows.in_each_block(model, (1,)))
    for parameter in plain[0].attn.cpb_mlp.parameters():
        parameter.zero_()
    merged = windows.MergedBlock(plain[0], shifted=False)
    torch.testing.assert_close(merged(x), plain[0](x), atol=1e-4, rtol=1e-4)
    assert each(torch.randn(1, 14, 14, 16)).shape == (1, 14, 14, 16)


@torch.no_grad()
def test_every_window_keeps_as_many_tokens(windows):
    stage = windows.MergedStage(blocks_of(windows, built("timm")), 0, "tome", 0.5)
    x = torch.randn(2, 14, 14, 16)
    cells = stage._cells(x)
    split = cells.split(x)
    assert torch.equal(cells.join(split), x)
    merged, tokens, counts = stage._merge(split, split, cells)
    assert counts == [5, 6, 6, 8] and merged.shape == (2, 2, 2, 25, 16)
    assert (tokens.size.sum(1) == 49).all() and tokens.size.shape == (8, 25)
