import numpy as np
import pytest
import torch

from engine.data.augmentation.mix import Mix
from engine.data.settings import AugmentSettings
from engine.tasks import MANY_LABELS
from models.settings import UserError

SETTINGS = [AugmentSettings(mixup=0.8), AugmentSettings(cutmix=1.0), AugmentSettings(mixup=0.8, cutmix=1.0)]


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


@pytest.mark.parametrize("augment", SETTINGS)
def test_it_is_a_function_of_seed_and_step(augment):
    mix, (images, labels) = Mix(augment, 5, 0.1), batch(16)
    first = mix(images, labels, 7, 0)
    np.random.seed(123)
    again = mix(images, labels, 7, 0)
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    for step, seed in ((8, 0), (7, 1)):
        assert not first[0].equal(mix(images, labels, step, seed)[0])


@pytest.mark.parametrize("augment", SETTINGS)
def test_numpys_generator_and_the_inputs_stay_as_they_were(augment):
    images, labels = batch(16)
    copies = images.clone(), labels.clone()
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    Mix(augment, 5, 0.1)(images, labels, 0, 0)
    assert (np.random.rand(3) == expected).all()
    assert images.equal(copies[0]) and labels.equal(copies[1])


def test_numpys_generator_is_put_back_after_an_error():
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    with pytest.raises(RuntimeError):
        Mix(SETTINGS[0], 5, 0.0)(torch.zeros(4, 3, 8, 8, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 0, 0)
    assert (np.random.rand(3) == expected).all()


@pytest.mark.parametrize("size", [1, 2, 15, 16])
@pytest.mark.parametrize("augment", SETTINGS)
def test_targets_are_distributions_that_say_what_is_in_the_image(augment, size):
    images, labels = batch(size)
    for step in range(10):
        mixed, targets = Mix(augment, 5, 0.1)(images, labels, step, 0)
        assert mixed.shape == images.shape and targets.shape == (size, 5) and targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(size))
        assert targets.min() >= 0.1 / 5 - 1e-6
        if size % 2:
            assert mixed[-1].equal(images[-1])
            assert targets[-1].argmax() == labels[-1] and targets[-1].max() == pytest.approx(0.9 + 0.1 / 5)


def test_mixup_is_linear_in_images_and_targets():
    images, labels = batch(16)
    mixed, targets = Mix(SETTINGS[0], 5, 0.0)(images, labels, 3, 0)
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    one_hot = torch.eye(5)[labels]
    torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


def test_cutmix_targets_count_pixels():
    images, labels = batch(16)
    for step in range(20):
        mixed, targets = Mix(SETTINGS[1], 5, 0.0)(images, labels, step, 0)
        share = (mixed == images).float().mean()
        one_hot = torch.eye(5)[labels]
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


@pytest.mark.parametrize("augment, key", [(SETTINGS[0], "mixup = 0.8"), (SETTINGS[1], "cutmix = 1.0")])
def test_many_labels_are_refused(augment, key):
    with pytest.raises(UserError, match=f"augment.{key}: not supported for multi-label targets; set it to 0"):
        Mix(augment, 5, 0.0, task=MANY_LABELS)
