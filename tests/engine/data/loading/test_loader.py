import pytest
import torch

from engine.data.arrays import Arrays, channel_stats
from engine.data.loading.loader import TrainLoader, eval_batches
from engine.data.settings import AugmentSettings
from models.settings import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
EVERYTHING = AugmentSettings(crop=4, flip=True, erase=0.5, vflip=True, rotate90=True, scale=0.3, jitter=0.2)


def loader(arrays: Arrays, batch_size: int = 16, augment: AugmentSettings = EVERYTHING, seed: int = 0) -> TrainLoader:
    return TrainLoader(arrays, batch_size, augment, MEAN, STD, seed)


def numbered(count: int) -> Arrays:
    """Images whose label is their index."""
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Arrays(images, torch.arange(count))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((images.double() / 255 - mean) / std).float()


@pytest.mark.parametrize("start", [0, 1, 5, 11, 12])
def test_an_epoch_entered_late_gives_what_it_would_have_given(arrays, start):
    whole = list(loader(arrays).epoch(3))
    rest = list(loader(arrays).epoch(3, start))
    assert len(whole) == len(loader(arrays)) == 200 // 16 and len(rest) == len(whole) - start
    for (images, labels), (again, same) in zip(whole[start:], rest, strict=True):
        assert images.equal(again) and labels.equal(same)


def test_an_image_is_augmented_alike_in_batches_of_any_size():
    arrays = numbered(60)
    by_size = [
        {int(label): image for images, labels in loader(arrays, size).epoch(2) for image, label in zip(images, labels)}
        for size in (1, 7, 30)
    ]
    for index in set.intersection(*(set(images) for images in by_size)):
        assert by_size[0][index].equal(by_size[1][index]) and by_size[0][index].equal(by_size[2][index])


def test_an_epoch_has_every_image_at_most_once_and_epochs_differ():
    arrays = numbered(50)
    orders = [torch.cat([labels for _, labels in loader(arrays, 8).epoch(epoch)]).tolist() for epoch in range(20)]
    assert all(len(order) == len(set(order)) == 48 for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert len({frozenset(order) for order in orders}) > 10  # those left out change too
    other = torch.cat([labels for _, labels in loader(arrays, 8, seed=1).epoch(0)]).tolist()
    assert other != orders[0]


def test_without_augmentation_pixels_are_normalised_and_nothing_else():
    arrays = numbered(50)
    before = arrays.images.clone()
    for images, labels in loader(arrays, 10, AugmentSettings()).epoch(0):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64 and images.is_contiguous()
        torch.testing.assert_close(images, normalised(arrays.images[labels]), rtol=1e-6, atol=1e-6)
    for _ in loader(arrays, 10).epoch(0):
        pass
    assert arrays.images.equal(before) and arrays.labels.equal(torch.arange(50))


def test_erased_pixels_are_the_mean_in_every_channel():
    arrays = numbered(50)
    images, labels = next(loader(arrays, 50, AugmentSettings(erase=1.0)).epoch(0))
    erased = (images == 0).all(1)
    assert (erased.flatten(1).float().mean(1) >= 0.02).all()
    kept = ~erased[:, None].expand_as(images)
    torch.testing.assert_close(images[kept], normalised(arrays.images[labels])[kept], rtol=1e-6, atol=1e-6)


def test_global_generators_are_neither_read_nor_moved(arrays):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = next(loader(arrays).epoch(0))[0]
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert next(loader(arrays).epoch(0))[0].equal(first)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_evaluation_covers_everything_once_and_in_order(batch_size):
    arrays = numbered(50)
    images, labels = (torch.cat(parts) for parts in zip(*eval_batches(arrays, batch_size, MEAN, STD)))
    assert labels.tolist() == list(range(50))
    torch.testing.assert_close(images, normalised(arrays.images), rtol=1e-6, atol=1e-6)


def test_evaluation_of_nothing():
    assert list(eval_batches(numbered(50).take(torch.arange(0)), 8, MEAN, STD)) == []


def test_computed_statistics_normalise_to_zero_mean_and_unit_variance(arrays):
    images = torch.cat([images for images, _ in eval_batches(arrays, 64, *channel_stats(arrays))]).double()
    assert images.mean((0, 2, 3)).abs().max() < 1e-6
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_statistics_of_many_images_and_of_a_constant_channel():
    images = torch.full((3000, 2, 4, 4), 255, dtype=torch.uint8)
    images[::3, 1] = 0
    mean, std = channel_stats(Arrays(images, torch.zeros(len(images), dtype=torch.int64)))
    assert mean == pytest.approx((1.0, 2 / 3)) and std == pytest.approx((1 / 255, (2 / 9) ** 0.5))


def test_a_batch_larger_than_the_training_set_is_refused(arrays):
    with pytest.raises(UserError, match=r"train.batch_size = 201: there are only 200 training images"):
        loader(arrays, 201)


def test_a_crop_that_can_leave_nothing_is_refused(arrays):
    with pytest.raises(UserError, match=r"augment.crop = 32: must be less than the images' 32 pixels"):
        loader(arrays, augment=AugmentSettings(crop=32))


def test_quarter_turns_of_images_that_are_not_square_are_refused(arrays):
    tall = Arrays(arrays.images[..., :20].contiguous(), arrays.labels)
    with pytest.raises(UserError, match=r"augment.rotate90 = True: images are 32 x 20, not square; set it to false"):
        loader(tall, augment=AugmentSettings(rotate90=True))


def test_many_labels_stay_with_their_images():
    arrays = numbered(40)
    many = Arrays(arrays.images, (torch.arange(40)[:, None] >> torch.arange(6) & 1).float())
    batches = [list(loader(part, 16).epoch(1)) for part in (arrays, many)]
    batches += [list(eval_batches(part, 16, MEAN, STD)) for part in (arrays, many)]
    for plain, coded in (batches[:2], batches[2:]):
        for (images, labels), (same, bits) in zip(plain, coded, strict=True):
            assert images.equal(same) and bits.dtype == torch.float32
            assert (bits.long() << torch.arange(6)).sum(1).equal(labels)
