"""What images cost where the number of tokens depends on them: by formula and by trace, one by one."""

from __future__ import annotations

import statistics

import pytest
import torch

from engine.cost import images as counting
from engine.cost.images import ImageCosts, ImageCounter
from engine.cost.macs import CountError, NotCounted, measure, measure_or_say, traced_macs
from models import MODELS
from models.formulas import formula_macs
from models.interface import depends_on_image, removed_per_block, tokens_per_block
from models.merging import wrap
from models.merging.layer import tokens_of_images
from models.settings import check
from tests.marks import mostly_slow
from tests.models.merging.support import CONFORMER
from tests.models.merging.wrapped_models import TINY, built

OURS = {"vit": {}, "hybrid": {}, "conformer": CONFORMER}
FORMS = [
    {"threshold": 0.97},
    {"threshold": 0.97, "kth": 3, "blocks": [2]},
    {"method": "tofu", "threshold": 0.97, "metric": "tokens"},
    {"method": "atc", "threshold": 0.98},
    {"method": "topk", "threshold": 0.8},
    {"method": "topk", "threshold": 0.8, "prune": True},
    {"method": "ats", "adaptive": True, "r": 2},
]


def pictures() -> torch.Tensor:
    """Images of which blocks remove much, something, and nothing."""
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return noise * torch.tensor([0.02, 0.1, 0.5, 3.0])[:, None, None, None] + 0.5


def ours(name: str, merge: dict[str, object]):
    settings_class, make = MODELS[name]
    settings = check(settings_class, {"name": name, **TINY, "in_chans": 3, **OURS[name], "merge": merge})
    torch.manual_seed(0)
    model = make(settings).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # so that attention differs from patch to patch
    return model, settings


def one_by_one(model, settings=None) -> list[tuple[float, dict[str, int]]]:
    """Each image's cost as it is counted, and as it is traced."""
    found = []
    for image in pictures()[1:].split(1):
        with torch.no_grad(), ImageCounter(model, settings) as counter:
            model(image)
        costs = counter.costs()
        assert costs.images == 1 and costs.std is None and costs.least == costs.mean == costs.most
        found.append((costs.mean, traced_macs(model, image)))
    return found


def least_mean_and_most(model, settings=None) -> tuple[list[float], list[int]]:
    """The MACs of the cheapest, the mean and the dearest of the images, as they are counted, and as they are traced."""
    with torch.no_grad(), ImageCounter(model, settings) as counter:
        for image in pictures()[1:].split(1):
            model(image)
    costs, traced = counter.costs(), [sum(traced_macs(model, image).values()) for image in pictures()[1:].split(1)]
    assert costs.images == 3
    return [n * 1e9 for n in (costs.least, costs.mean, costs.most)], [
        min(traced),
        statistics.fmean(traced),
        max(traced),
    ]


@pytest.mark.parametrize(
    ("name", "merge"), [*(("vit", form) for form in FORMS), ("hybrid", FORMS[0]), ("conformer", FORMS[0])], ids=str
)
def test_the_formula_is_the_trace_for_every_image(name, merge):
    model, settings = ours(name, merge)
    counted, traced = least_mean_and_most(model, settings)
    assert traced[0] < traced[-1]
    assert [round(macs) for macs in counted] == [round(macs) for macs in traced]


@pytest.mark.parametrize(
    ("family", "merge"),
    mostly_slow(
        [*(("deit", form) for form in FORMS[2:]), ("beit", FORMS[0]), ("eva02", FORMS[0])],
        [("deit", FORMS[2]), ("deit", FORMS[-1]), ("eva02", FORMS[0])],
    ),
    ids=str,
)
def test_a_wrapped_model_s_counts_are_the_trace_for_every_image(family, merge):
    model = wrap(built(family), **merge)
    counted, traced = least_mean_and_most(model)
    assert counted == pytest.approx(traced, rel=2e-3)  # of so few tokens, parity is seen


def test_of_several_images_mean_and_spread_are_those_of_the_single_ones():
    model, settings = ours("vit", FORMS[0])
    with torch.no_grad(), ImageCounter(model, settings) as counter:
        for batch in pictures()[1:].split(2):
            model(batch)
    costs, alone = counter.costs(), [gmacs for gmacs, _ in one_by_one(model, settings)]
    assert costs.images == 3 and costs.mean == pytest.approx(statistics.fmean(alone))
    assert costs.std == pytest.approx(statistics.stdev(alone))
    assert (costs.least, costs.most) == (min(alone), max(alone))
    with torch.no_grad(), tokens_of_images(model) as tokens:
        model(pictures()[1:])
    assert costs.tokens == [statistics.fmean(block) for block in list(zip(*tokens, strict=True))[1:]]
    assert [of_image[0] for of_image in tokens] == [17] * 3


def test_a_block_that_matches_and_removes_nothing_costs_its_matching():
    different, settings = ours("vit", {"threshold": 1.0})
    _, unmerged = ours("vit", {"r": 0})
    with torch.no_grad(), ImageCounter(different, settings) as counter:
        different(pictures()[3:])
    matching = 3 * (8 * 8) * 8  # in 3 blocks: 8 sources, 8 destinations, a metric of width 8
    assert round(counter.costs().mean * 1e9) == sum(formula_macs(unmerged).values()) + matching


def test_nothing_fixed_is_said_of_such_a_model():
    model, settings = ours("vit", FORMS[0])
    assert depends_on_image(model) and tokens_per_block(model) == [] and removed_per_block(model) == []
    with pytest.raises(NotCounted, match="depends on the image"):
        measure(model, settings=settings)
    cost = measure_or_say(model, settings)
    assert cost.gmacs is None and cost.params > 0 and "count the mean of real images" in cost.not_counted


def test_fixed_numbers_are_left_to_the_count_of_the_model():
    model, settings = ours("vit", {"r": 4})
    with torch.no_grad(), ImageCounter(model, settings) as counter:
        model(pictures())
    assert counter.costs() is None and not depends_on_image(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_two_counts_that_differ_are_an_error(monkeypatch):
    model, settings = ours("vit", FORMS[0])
    monkeypatch.setattr(counting, "macs_of_image", lambda *_: {"linear": 1})
    with torch.no_grad(), ImageCounter(model, settings) as counter:
        model(pictures())
    with pytest.raises(CountError):
        counter.costs()


def test_costs_in_words():
    costs = ImageCosts(500, 0.73449, 0.0612, 0.5513, 0.9021, [100.0])
    words = "0.7345 GMACs, mean of 500 images (standard deviation 0.0612, 0.5513 to 0.9021)"
    assert costs.in_words() == words and costs.in_short() == "0.7345 ± 0.0612"
    alone = costs._replace(images=1, std=None)
    assert alone.in_words() == "0.7345 GMACs, of 1 image" and alone.in_short() == "0.7345"
