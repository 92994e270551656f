"""Schedules fitted to a budget: the search against all schedules, planted models, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import timm
import torch

from models import build_model
from models.merging import fit_schedule, wrap
from models.merging.fitting import divergence
from models.merging.wrapping import blocks_of, cost_per_image, schedule_of
from models.settings import UserError
from tests.models.merging import test_huggingface
from tests.models.merging.wrapped_models import built, images

BUDGET = {"target_ratio": 1.3}


def noise(batch: int = 32, size: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))


def with_planted_block(reads: int, depth: int = 4) -> torch.nn.Module:
    """A ViT whose class token reads patches in one block alone: whatever merges in it or later is of no consequence."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, depth=depth, num_classes=7).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight.mul_(2), block.attn.proj.weight.mul_(3), block.mlp.fc2.weight.mul_(3)
        for later in range(reads + 1, depth):  # the attention of these adds nothing to any token
            model.blocks[later].attn.proj.weight.zero_(), model.blocks[later].attn.proj.bias.zero_()
        model.head.weight.mul_(20)
    return model


@pytest.mark.parametrize(("method", "reads"), [("tome", 1), ("diffrate", 2)])
def test_blocks_whose_merging_moves_nothing_do_all_of_it(method, reads):
    """Merging happens after a block's attention: from the last block that is read on, it is of no consequence."""
    model = with_planted_block(reads)
    found = fit_schedule(model, noise(), method, target_ratio=1.1)
    assert found.spread_evenly > 1e-3 and found.distance < 1e-6
    assert sum(found.r[:reads]) == 0 < sum(found.r[reads:])


def test_the_distance_is_the_divergence_written_out():
    model = built("deit")
    given = images(3)
    found = fit_schedule(model, given, batch_size=2, **BUDGET)
    p = torch.softmax(model(given).double(), -1)
    assert type(model.blocks) is torch.nn.Sequential  # as it was, not wrapped
    for r, expected in ((found.r, found.distance), (schedule_of(wrap(model, **BUDGET)), found.spread_evenly)):
        q = torch.softmax(wrap(model, r=list(r))(given).double(), -1)
        by_hand = np.mean([sum(a * np.log(a / b) for a, b in zip(x, y)) for x, y in zip(p.tolist(), q.tolist())])
        assert expected == pytest.approx(by_hand, rel=1e-3)
    assert found.distance <= found.spread_evenly


@pytest.mark.parametrize(
    ("name", "method"), [("deit", "facility_location"), ("beit", "pitome"), ("torchvision", "topk")]
)
def test_the_schedule_meets_the_budget_and_the_model_is_as_it_was(name, method):
    plain = built(name).train()
    model = wrap(plain, "tome", r=2)
    found = fit_schedule(model, images(), method, **BUDGET)
    assert schedule_of(model) == [2, 2, 2] and blocks_of(model).settings.method == "tome" and model.training
    wrap(model, method, r=0)
    assert found.gmacs == pytest.approx(cost_per_image(model)((0, 0, 0)) / 1e9 / 1.3, rel=5e-3)
    assert schedule_of(wrap(model, method, r=found.r)) == found.r  # the blocks remove what the list says


def test_the_search_ends_among_the_best_of_all_schedules_of_a_small_model():
    """Every schedule is tried that costs as much: the search ends among the best third of them."""

    def distance(merged, unmerged):  # which does not differ much from image to image
        return (merged - unmerged).norm(dim=-1)

    model = with_planted_block(2, depth=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    found = fit_schedule(model, noise(), "tome", distance=distance, target_ratio=1.15)
    unmerged, all_of_them = model(noise()).detach(), []
    wrap(model, "tome", r=0)
    cost = None
    for schedule in product(range(0, 9), repeat=3):
        blocks_of(model).plan = list(schedule)
        if schedule_of(model) == list(schedule):
            cost = cost or cost_per_image(model)
            if abs(cost(schedule) / 1e9 / found.gmacs - 1) < 0.01:
                all_of_them.append(distance(model(noise()), unmerged).mean().item())
    assert len(all_of_them) > 20
    assert found.distance <= np.quantile(all_of_them, 1 / 3)


def test_a_schedule_that_is_better_for_some_images_alone_is_no_better():
    """Of two images the distance falls greatly, of fourteen it rises a little: the mean falls, by chance."""
    model, given = built("deit"), images(16)
    wrap(model, "tome", **BUDGET)
    even = model(given).detach()
    wrap(model, "tome", r=0)
    sign = torch.tensor([-1.0] * 2 + [0.05] * 14)

    def lucky(merged, unmerged):
        at_even = (merged - even).abs().amax(-1) < 1e-5
        return torch.where(at_even, 2.0, 2.0 + sign)

    assert lucky(even + 1, even).mean() < lucky(even, even).mean()
    found = fit_schedule(model, given, distance=lucky, **BUDGET)
    assert found.distance == found.spread_evenly == 2.0
    certain = fit_schedule(model, given, distance=lambda m, u: lucky(m, u) - 0.2 * (lucky(m, u) != 2.0), **BUDGET)
    assert certain.distance < certain.spread_evenly


def test_first_block_and_blocks_hold():
    found = fit_schedule(built("deit"), images(), "tome", target_ratio=1.2, first_block=2)
    assert found.r[0] == 0 and sum(found.r) > 0
    found = fit_schedule(built("deit"), images(), "tome", target_ratio=1.2, blocks=[1, 2])
    assert found.r[2] == 0 and sum(found.r) > 0


def test_a_distance_of_ones_own_and_outputs_with_logits():
    """A model of transformers returns its logits among other outputs; and a distance may read anything."""
    model, given = test_huggingface.built("ViT"), images()
    logits = fit_schedule(model, given, **BUDGET)
    assert logits.distance <= logits.spread_evenly
    mine = fit_schedule(built("deit"), given, distance=lambda a, b: (a - b).norm(dim=-1), **BUDGET)
    assert mine.distance <= mine.spread_evenly and mine.distance != logits.distance


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 4}, "merge.target_gmacs: missing; a schedule is fitted to a budget"),
        ({"target_ms": 3.0}, "give target_gmacs or target_ratio"),
        ({"method": "grid", **BUDGET}, "merge.method = 'grid': keeps a grid, and its schedule cannot be fitted"),
        ({"method": "sit", **BUDGET}, "'sit': learns how many tokens it leaves"),
        ({"method": "dynamicvit", **BUDGET}, "'dynamicvit': learns which patches it removes"),
        ({"method": "dtem", **BUDGET}, "merge.method = 'dtem': compares patches by what it learns, and a schedule is"),
        ({"metric": "learned", **BUDGET}, "merge.metric = 'learned': compares patches by what it learns"),
        ({"target_ratio": 9.0}, "merge.target_ratio = 9.0 "),
        ({"target_ratio": 1.3, "threshold": 0.9}, "cannot be combined"),
        ({"images": torch.zeros(3, 32, 32), **BUDGET}, "images: float32 (3, 32, 32); give normalised images"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), **BUDGET}, "images: uint8 (2, 3, 32, 32)"),
        ({"images": torch.full((2, 3, 32, 32), torch.nan), **BUDGET}, "is not finite for all; check them"),
        (
            {"images": torch.zeros(2, 3, 64, 32), **BUDGET},
            "images: 3 x 64 x 32; this VisionTransformer was built for 3",
        ),
        (
            {"images": torch.zeros(2, 1, 32, 32), **BUDGET},
            "images: 1 x 32 x 32; this VisionTransformer was built for 3",
        ),
        ({"batch_size": 0, **BUDGET}, "batch_size = 0: must be at least 1"),
        ({"distance": lambda a, b: a - b, **BUDGET}, "distance: returned (2, 5) for 2 images; return a tensor (2,)"),
        ({"distance": lambda a, b: 1.0, **BUDGET}, "distance: returned float for 2 images"),
        ({"distance": lambda a, b: divergence(a[None], b), **BUDGET}, "no logits (B, classes)"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(options, message):
    model = built("deit")
    before = model(images())
    with pytest.raises(UserError) as raised:
        fit_schedule(model, options.pop("images", images()), **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert torch.equal(model(images()), before)


def test_our_own_models_are_refused_as_by_wrap():
    with pytest.raises(UserError, match="merges by itself"):
        fit_schedule(build_model("vit", img_size=32, embed_dim=16, num_heads=2, depth=1), images(), **BUDGET)
