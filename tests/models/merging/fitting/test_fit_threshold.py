"""Thresholds fitted to a budget: what images cost with them, and what is refused."""

from __future__ import annotations

import pytest
import torch

from engine.cost.images import ImageCounter
from models.merging import fit_schedule, fit_threshold, wrap
from models.merging.fitting.threshold import FittedThreshold, solved
from models.merging.wrapping import schedule_of
from models.settings import UserError
from tests.models.merging.wrapped_models import built


def pictures(batch: int = 24) -> torch.Tensor:
    """Images of noise, some nearly plain, so that they lose different numbers of patches."""
    noise = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return noise * torch.linspace(0.02, 1.0, batch)[:, None, None, None] + 0.5


@pytest.mark.parametrize(("name", "method"), [("deit", "tome"), ("torchvision", "topk")])
def test_the_mean_of_these_images_meets_the_budget(name, method):
    """As tools count it, image by image; and the model is as it was."""
    model, given = wrap(built(name), "tome", r=1), pictures()
    before = model(given)
    found = fit_threshold(model, given, method, target_ratio=1.15, batch_size=7, first_block=2)
    assert torch.equal(model(given), before) and schedule_of(model) == [1, 1, 1]
    wrap(model, method, threshold=found.threshold, first_block=2)
    with torch.no_grad(), ImageCounter(model) as counter:
        for batch in given.split(5):
            model(batch)
    costs = counter.costs()
    assert found.mean == pytest.approx(costs.mean, rel=1e-6) and costs.std > 0
    assert (min(found.gmacs), max(found.gmacs)) == pytest.approx((costs.least, costs.most), rel=1e-6)
    unmerged = max(costs.most, fit_schedule(built(name), given[:1], target_ratio=1.0).gmacs)
    assert found.mean == pytest.approx(unmerged / 1.15, rel=5e-3)


@pytest.mark.parametrize("target", [0.31, 0.5, 0.77])
def test_the_search_ends_at_the_target_of_a_cost_that_is_flat_and_then_steep(target):
    tried = []

    def costs(threshold):
        tried.append(threshold)
        return FittedThreshold(threshold, [0.3 + max(threshold - 0.8, 0) ** 2 * 15])

    found = solved(costs, target, "merge.target_gmacs = 0.5", "tome")
    assert found.mean == pytest.approx(target, rel=5e-3) and len(tried) < 20
    assert found.threshold == round(found.threshold, 4)


def test_a_cost_of_two_steps_is_too_coarse_for_what_is_between():
    def costs(threshold):
        return FittedThreshold(threshold, [0.3 if threshold < 0.9 else 0.6])

    with pytest.raises(UserError, match=r"within 0.5 %; the nearest cost 0.3 and 0.6 GMACs; give more images"):
        solved(costs, 0.45, "merge.target_gmacs = 0.45", "tome")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "pitome", "target_ratio": 1.2}, "merge.method = 'pitome': takes no threshold; use one of tome, "),
        (
            {"metric": "learned", "target_ratio": 1.2},
            "merge.metric = 'learned': compares patches by what it learns, and",
        ),
        ({"threshold": 0.9}, "merge.target_gmacs: missing; a threshold is fitted to a budget"),
        ({"target_ratio": 9.0}, "merge.target_ratio = 9.0: out of reach; with thresholds of tome these images cost"),
        ({"target_ratio": 1.2, "images": torch.zeros(0, 3, 32, 32)}, "images: float32 (0, 3, 32, 32); give normalised"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError) as raised:
        fit_threshold(built(), options.pop("images", pictures(4)), **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)
