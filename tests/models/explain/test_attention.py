"""Explanations by attention and Grad-CAM: exact through merging, and equal to the formulas where nothing is merged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import build_model
from models.explain import EXPLAINERS, explain
from models.explain.recording import recording
from models.merging import MERGERS, wrap
from models.merging.wrapping import MergingBlocks, trace
from models.settings import UserError
from tests.models.merging.wrapped_models import ALL, PATCHES, built, images

METHODS = [name for name in MERGERS if name != "none"]
BY_ATTENTION = ("rollout", "gradient_rollout")


def test_a_recorded_model_computes_what_it_computes_otherwise():
    model = wrap(built(), method="tome", r=3)
    with torch.no_grad(), recording(model) as blocks:
        recorded = model(images())
    torch.testing.assert_close(recorded, model(images()))
    assert [block.attention.shape[-1] for block in blocks] == [17, 14, 11]
    assert [block.after.size.shape[1] for block in blocks] == [14, 11, 8]
    assert all((block.attention.sum(-1) - 1).abs().max() < 1e-5 for block in blocks)
    assert all(block.answer is not None for block in blocks)


@pytest.mark.parametrize("method", [*BY_ATTENTION, "gradcam"])
def test_images_that_keep_different_numbers_of_tokens_are_explained_as_they_are_alone(method):
    model = wrap(built(), threshold=0.97)
    pictures = images(3) * torch.tensor([0.05, 0.5, 3.0])[:, None, None, None] + 0.5
    together = explain(model, pictures, method).relevance
    assert len(set(trace(model, pictures)[1].left)) > 1
    for image in range(3):
        alone = explain(model, pictures[image : image + 1], method).relevance[0]
        torch.testing.assert_close(together[image], alone, atol=1e-5 * float(alone.max()), rtol=1e-4)


@pytest.mark.parametrize("method", BY_ATTENTION)
def test_a_threshold_that_merges_nothing_explains_as_no_merging(method):
    found, wanted = (
        explain(wrap(built(), **how), images(2), method).relevance for how in ({"threshold": 1.0}, {"r": 0})
    )
    torch.testing.assert_close(found, wanted)


@ALL
def test_every_family_is_recorded_and_left_as_it_was(name):
    model = built(name)
    before = model(images())
    with torch.no_grad(), recording(model) as blocks:
        recorded = model(images())
    torch.testing.assert_close(recorded, before)
    assert len(blocks) == 3 and all(block.answer is None for block in blocks)
    assert not any(isinstance(module, MergingBlocks) for module in model.modules())
    assert torch.equal(model(images()), before)


@ALL
@pytest.mark.parametrize("r", [0, 4])
def test_rows_of_rollout_sum_to_one(name, r):
    """Over patches and prefix tokens, with any family and merging."""
    model = built(name)
    if r:
        wrap(model, r=r)
    found = explain(model, images(), "rollout").relevance
    assert found.shape == (2, 4, 4) and (found >= 0).all()
    total = found.sum((1, 2))
    assert (total <= 1 + 1e-5).all() and (total > 0.5).all()
    if name == "average":  # no prefix tokens
        torch.testing.assert_close(total, torch.ones(2))


@pytest.mark.parametrize("method", METHODS)
def test_what_a_merge_does_to_rows_is_what_it_does_to_tokens(method):
    """Rows of the identity, carried through the merges alone, are the weights of each token's members."""
    model = wrap(built(), method=method, r=4)
    with torch.no_grad(), recording(model) as blocks:
        model(images())
    rows = torch.eye(1 + PATCHES).expand(2, -1, -1)
    values = carried = torch.randn(2, 1 + PATCHES, 3, generator=torch.Generator().manual_seed(0))
    for block in blocks:
        rows, carried = block.carry(rows), block.carry(carried)
    state = blocks[-1].after
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]))
    torch.testing.assert_close(rows @ values, carried)
    if state.soft is not None:
        return  # each token has a part of every patch
    belongs = F.one_hot(state.index, rows.shape[1]).mT.bool()  # (B, S, P + N)
    assert (rows[~belongs] == 0).all()
    if method not in ("topk", "mctf", "pitome", "dynamicvit"):  # these weight members unequally, or drop some
        means = belongs / state.size.unsqueeze(-1)
        torch.testing.assert_close(rows, means)


def duplicated(name):
    """A model that cannot tell equal patches apart, and images of which each patch occurs twice, beside itself."""
    model = built(name)
    with torch.no_grad():
        model.pos_embed.zero_()
    half = images()[:, :, :, :16]
    patches = half.unflatten(3, (2, 8)).repeat_interleave(2, dim=3).flatten(3)  # columns of patches: a a b b
    return model, patches


@pytest.mark.parametrize("method", [*BY_ATTENTION, "gradcam"])
@pytest.mark.parametrize("name", ["deit", "average"])
def test_merging_equal_patches_changes_no_explanation(name, method):
    """The merge of two equal patches is exact, so that the explanation is the same to rounding."""
    model, twice = duplicated(name)
    plain = explain(model, twice, method, target=3).relevance
    wrap(model, method="tome", r=[8, 0, 0])
    merged = explain(model, twice, method, target=3)
    torch.testing.assert_close(merged.logits, model(twice), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged.relevance, plain, rtol=2e-4, atol=1e-6)
    assert plain.std() > 0
    torch.testing.assert_close(merged.relevance[:, :, 0], merged.relevance[:, :, 1])  # equal patches


def literal_attention(model: nn.Module, x: torch.Tensor, target: int):
    """Attention and its gradient in every block of a timm ViT, by timm's own unfused code."""
    seen, hooks = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda m, i, out: seen.append(out)))
    logits = model(x)
    gradients = torch.autograd.grad(logits[:, target].sum(), seen)
    for hook, block in zip(hooks, model.blocks):
        hook.remove()
        block.attn.fused_attn = True
    return seen, gradients


def test_without_merging_they_are_the_papers_formulas():
    model, x = built(), images()
    seen, gradients = literal_attention(model, x, 2)
    eye = torch.eye(1 + PATCHES)
    product, relevance = eye, eye.expand(2, -1, -1)
    for attention, gradient in zip(seen, gradients, strict=True):
        mixed = attention.mean(1) + eye
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
        relevance = relevance + (attention * gradient).clamp(min=0).mean(1) @ relevance
    for method, expected in (("rollout", product), ("gradient_rollout", relevance)):
        found = explain(model, x, method, target=2).relevance
        torch.testing.assert_close(found, expected[:, 0, 1:].view(2, 4, 4).detach(), rtol=1e-4, atol=1e-6)


def test_grad_cam_of_tokens_is_the_formula():
    model, x, kept = built(), images(), []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda m, i, out: kept.append(out))
    logits = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), kept[0])
    weights = gradient[:, 1:].mean(1)
    expected = torch.einsum("bnc,bc->bn", kept[0][:, 1:], weights).relu().view(2, 4, 4)
    torch.testing.assert_close(explain(model, x, "gradcam", target=2).relevance, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "layer"), [("timm:resnet18", "layer4"), ("torchvision:squeezenet1_1", "features")])
def test_grad_cam_of_maps_is_captums(name, layer):
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = build_model(name, img_size=64, num_classes=5).eval()
    x = images(size=64)
    module = model.get_submodule(layer)
    expected = captum.LayerGradCam(model, module).attribute(x, target=3, relu_attributions=True)[:, 0]
    torch.testing.assert_close(explain(model, x, "gradcam", target=3).relevance, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "at", "shape"),
    [
        ("hybrid", None, (4, 4)),
        ("hybrid", "tokens", (4, 4)),
        ("vit", None, (4, 4)),
        ("conformer", "map", (2, 2)),
        ("conformer", "tokens", (4, 4)),
        ("cnn", None, (8, 8)),
        ("lenet5", "map", (5, 5)),
    ],
)
def test_grad_cam_of_our_models(name, at, shape):
    sizes = {"img_size": 32, "num_classes": 5}
    small = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    options = {} if name in ("cnn", "lenet5") else small | ({"stem_stride": 2} if name == "conformer" else {})
    model = build_model(name, **sizes, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert explain(model, images(), "gradcam", target=1, at=at).relevance.shape == (2, *shape)


def test_a_model_is_left_as_it_was():
    model = built().train()
    model.head.weight.requires_grad_(False)
    explain(model, images(), "gradcam")
    assert model.training and not model.head.weight.requires_grad and model.pos_embed.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_class_is_the_predicted_one_unless_given():
    model, x = built(), images()
    predicted = explain(model, x, "gradcam")
    assert torch.equal(predicted.target, model(x).argmax(1))
    both = explain(model, x, "gradcam", target=torch.tensor([0, 4]))
    for i, target in enumerate((0, 4)):
        alone = explain(model, x[i : i + 1], "gradcam", target=target).relevance
        torch.testing.assert_close(both.relevance[i : i + 1], alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("deit", {"method": "gradcamm"}, "--method gradcamm: unknown; did you mean gradcam"),
        ("deit", {"method": "rollout", "at": "map"}, "at: not an option of rollout; known: none"),
        ("deit", {"method": "gradcam", "at": "maps"}, "at = 'maps': unknown; known: map, tokens"),
        ("deit", {"method": "gradcam", "at": "map"}, "at = map: the model has no feature map"),
        ("deit", {"method": "gradcam", "target": 5}, "--target 5: no such class; the model has 0 to 4"),
        ("deit", {"method": "gradcam", "target": -1}, "--target -1: no such class"),
    ],
)
def test_mistakes_are_one_line(name, arguments, line):
    with pytest.raises(UserError) as error:
        explain(built(name), images(), **arguments)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_model_without_attention_has_no_rollout():
    model = build_model("lenet5", in_chans=3)
    for method in BY_ATTENTION:
        with pytest.raises(UserError, match="its attention cannot be followed: LeNet5 is not a model that wrap"):
            explain(model, images(), method)


def test_every_entry_says_what_it_shows():
    for name, explainer in EXPLAINERS.items():
        assert explainer.line and "\n" not in explainer.line and len(explainer.line) < 100, name
