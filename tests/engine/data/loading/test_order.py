"""Balanced draws: equal numbers of each class, keyed by (seed, epoch), and the same for images and features."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import pytest
import torch

from engine.data.arrays import Arrays
from engine.data.loading.loader import TrainLoader
from engine.data.loading.order import Balanced, Shuffled, build_order
from engine.data.settings import AugmentSettings
from engine.train.loop.features import FeatureLoader
from models.settings import check

LABELS = torch.tensor([0] * 95 + [2] * 5)  # and none of class 1
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images() -> Arrays:
    pixels = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Arrays(pixels, LABELS)


@pytest.mark.parametrize("epoch", range(5))
def test_classes_are_drawn_equally_often(epoch):
    draws = Balanced(LABELS, seed=3)(epoch)
    assert len(draws) == 100 and len(set(draws.tolist())) == 100, "no draw twice"
    drawn = Counter((draws % 100).tolist())
    assert Counter(LABELS[draws % 100].tolist()) == {0: 50, 2: 50}
    assert {drawn[i] for i in range(95)} == {0, 1}, "of a common class a part, each at most once"
    assert [drawn[i] for i in range(95, 100)] == [10] * 5, "of a rare class all, equally often"


def test_a_rest_goes_to_other_classes_in_other_epochs():
    labels = torch.tensor([0] * 9 + [1, 2])  # 11 draws of 3 classes
    counts = [Counter(labels[Balanced(labels, 0)(epoch) % 11].tolist()) for epoch in range(60)]
    assert all(sorted(count.values()) == [3, 4, 4] for count in counts)
    fewest = Counter(min(count, key=count.__getitem__) for count in counts)
    assert all(fewest[label] > 8 for label in range(3)), fewest


def test_draws_depend_on_seed_and_epoch_alone():
    order = Balanced(LABELS, seed=3)
    assert order(2).equal(Balanced(LABELS, seed=3)(2))
    assert not order(2).equal(order(3)) and not order(2).equal(Balanced(LABELS, seed=4)(2))
    assert set((order(0) % 100).tolist()) != set((order(1) % 100).tolist()), "another part of the common class"
    half = LABELS[order(0)[:50] % 100]
    assert 10 < (half == 2).sum() < 40, "shuffled: classes do not come one after the other"


def test_uniform_is_every_image_once():
    assert sorted(build_order(LABELS, 0, "uniform")(1).tolist()) == list(range(100))
    assert isinstance(build_order(LABELS, 0, "balanced"), Balanced)
    assert Shuffled(100, 0)(1).equal(build_order(LABELS, 0, "uniform")(1))


@pytest.mark.parametrize(
    "augment", [{"flip": True, "scale": 0.3, "erase": 0.5}, {"transforms": [{"name": "RandAugment"}]}]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_drawn_again_is_augmented_anew_and_an_epoch_can_be_entered_late(augment, workers):
    settings = check(AugmentSettings, augment)

    def loader(processes: int) -> TrainLoader:
        order = Balanced(LABELS, 0)
        return TrainLoader(images(), 10, settings, MEAN, STD, 0, workers=processes, order=order)

    with closing(loader(workers)) as loading, closing(loader(0)) as other:
        whole = list(loading.epoch(1))
        rest = list(other.epoch(1, start=7))
    assert len(whole) == 10 and len(rest) == 3
    for (pixels, labels), (again, same) in zip(whole[7:], rest, strict=True):
        assert pixels.equal(again) and labels.equal(same)
    pixels, labels = (torch.cat(parts) for parts in zip(*whole))
    rare = pixels[labels == 2].flatten(1)
    assert len(rare) == 50 and len(torch.unique(rare, dim=0)) > 25, "five images, and more than five pictures"


def test_features_are_drawn_as_images_are():
    order = Balanced(LABELS, 0)
    features = FeatureLoader(torch.arange(100.0)[:, None], LABELS, 16, order)
    loader = TrainLoader(images(), 16, AugmentSettings(), MEAN, STD, 0, order=order)
    for (values, labels), (_, same) in zip(features.epoch(2, 1), loader.epoch(2, 1), strict=True):
        assert labels.equal(same) and LABELS[values[:, 0].long()].equal(labels)
