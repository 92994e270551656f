"""What patches count by without attention: the formula in loops, what it needs, and what it costs."""

import numpy as np
import pytest
import torch

from engine.cost.macs import measure
from models import build_model
from models.merging import MERGERS, MergeContext, layer, wrap
from models.merging.layer import distinctness
from models.registry import MODELS
from models.settings import UserError, check
from models.settings.vit import ViTSettings
from tests.models.merging.wrapped_models import built, images

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 10}
BY_KEYS = pytest.mark.parametrize("method", ["topk", "facility_location", "mctf"])


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("prefix", [0, 2])
def test_it_is_the_formula(prefix):
    rng = np.random.default_rng(0)
    k, size = rng.standard_normal((2, 3, 9, 4)), rng.integers(1, 5, (2, 9)).astype(float)
    expected = np.zeros((2, 9))
    for image in range(2):
        for head in range(3):
            mean = sum(size[image, j] * unit(k[image, head, j]) for j in range(prefix, 9))
            for i in range(prefix, 9):
                expected[image, i] += size[image, i] * (1 - unit(k[image, head, i]) @ unit(mean)) / 2 / 3
    found = distinctness(torch.from_numpy(k).float(), torch.from_numpy(size).float(), prefix)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_merged_patch_has_what_its_copies_have_together():
    k = torch.randn(1, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    copies = torch.cat([k, k[:, :, -1:], k[:, :, -1:]], dim=2)
    apart = distinctness(copies, torch.ones(1, 8), 1)
    together = distinctness(k, torch.tensor([[1.0, 1, 1, 1, 1, 3]]), 1)
    torch.testing.assert_close(together[:, :5], apart[:, :5])
    torch.testing.assert_close(together[:, 5], apart[:, 5:].sum(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_equal_keys_are_finite_and_not_negative(fill, dtype):
    found = distinctness(torch.full((2, 3, 6, 4), fill, dtype=dtype), torch.ones(2, 6), 1)
    assert found.isfinite().all() and (found >= 0).all() and found.dtype == torch.float32


def test_planted_outliers_are_kept():
    """Five patches that differ from a common background, whose direction no patch knows."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 2, 1, 16, generator=generator) + 0.3 * torch.randn(1, 2, 40, 16, generator=generator)
    k[:, :, 3:40:8] = torch.randn(1, 2, 5, 16, generator=generator)
    attention = distinctness(k, torch.ones(1, 40), 0)
    context = MergeContext(torch.ones(1, 40), attention)
    answer = MERGERS["topk"].bind(prune=True).assign(k.mean(1), 35, context)
    assert (answer.weight[0] > 0).nonzero().flatten().tolist() == [3, 11, 19, 27, 35]


@BY_KEYS
def test_no_attention_is_computed_and_costs_are_the_formulas(method, monkeypatch):
    section = {"method": method, "importance": "keys", "r": 8}
    settings = check(MODELS["vit"][0], {"name": "vit", **SMALL, "merge": section})
    model = build_model(**settings.model_dump()).eval()
    monkeypatch.setattr(layer, "attention_received", None)
    cost = measure(model, settings=settings)
    assert cost.by_kind == {kind: cost.formula.get(kind, 0) for kind in cost.by_kind}
    by_keys = 2 * (64 + 56 + 48) * 32
    rest = {"topk": 0, "facility_location": (64**2 + 56**2 + 48**2) * 8, "mctf": (32**2 + 28**2 + 24**2) * 8}[method]
    assert cost.by_kind["product"] == by_keys + rest


@pytest.mark.parametrize(
    ("method", "family"), [("topk", "average"), ("facility_location", "eva02"), ("mctf", "beit_both")]
)
def test_wrapped_models_need_no_class_token_and_images_do_not_see_each_other(method, family):
    model = wrap(built(family), method, importance="keys", r=3)
    together = model(images())
    assert together.isfinite().all() and not torch.equal(together, model(images().flip(-1)))
    alone = torch.cat([model(image[None]) for image in images()])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        ({"method": "topk", "importance": "size"}, "merge.importance = size: topk has attention and keys"),
        ({"method": "kmedoids", "importance": "keys"}, "merge.importance = keys: kmedoids has attention and size"),
        ({"method": "tome", "importance": "keys"}, "merge.importance = keys: tome has no such option"),
        ({"method": "mctf", "importance": "key"}, "merge.importance = .key.: did you mean keys"),
    ],
)
def test_a_word_that_another_method_has_is_refused(merge, words):
    with pytest.raises(UserError, match=words) as error:
        check(ViTSettings, {"name": "vit", **SMALL, "merge": {"r": 3, **merge}})
    assert "\n" not in str(error.value)


def test_a_threshold_holds_the_share_of_what_patches_count_by():
    model = wrap(built("average"), "topk", importance="keys", threshold=0.9)
    assert model(images()).isfinite().all()
    with pytest.raises(UserError, match="class token"):
        wrap(built("average"), "topk", threshold=0.9)
