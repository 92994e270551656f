import numpy as np
import pytest

from engine.data.augment import ERASE_AREA, ERASE_ASPECT, augment_images, erased_pixels, random_crop
from engine.data.settings import AugmentSettings
from models.settings import UserError, check

CROP_AND_FLIP = AugmentSettings(crop=4, flip=True)


def pictures(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, 3, size, size), dtype=np.uint8)


def placement(size: int, pad: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row offset, column offset and mirroring of `count` augmented copies of one image, found by looking at it."""
    image = np.arange(1, size * size + 1, dtype=np.uint8).reshape(1, 1, size, size).repeat(count, 0)
    augmented = augment_images(image, np.arange(count), AugmentSettings(crop=pad, flip=True), seed=0, epoch=0)
    padded = np.pad(image[0, 0], pad)
    found = {}
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            window = padded[y : y + size, x : x + size]
            found[window.tobytes()], found[window[:, ::-1].tobytes()] = (y, x, False), (y, x, True)
    return tuple(np.array(values) for values in zip(*(found[one.tobytes()] for one in augmented[:, 0])))


def test_an_image_does_not_depend_on_its_batch():
    images, index = pictures(64), np.arange(1000, 1064)
    whole = augment_images(images, index, CROP_AND_FLIP, seed=3, epoch=5)
    erased = erased_pixels((32, 32), index, 0.5, seed=3, epoch=5)
    for part in (slice(0, 1), slice(10, 17), [40, 3, 3, 63], slice(63, None, -1)):
        assert (augment_images(images[part], index[part], CROP_AND_FLIP, seed=3, epoch=5) == whole[part]).all()
        some = erased_pixels((32, 32), index[part], 0.5, seed=3, epoch=5)
        assert (erased[part] == (False if some is None else some)).all()


@pytest.mark.parametrize("seed, epoch", [(3, 6), (4, 5), (5, 3)])
def test_another_epoch_or_seed_is_another_draw(seed, epoch):
    images, index = pictures(200), np.arange(200)
    first, other = (augment_images(images, index, CROP_AND_FLIP, *key) for key in ((3, 5), (seed, epoch)))
    assert (first == other).all(axis=(1, 2, 3)).mean() < 0.03  # one in 162 by chance
    first, other = (erased_pixels((32, 32), index, 1.0, *key) for key in ((3, 5), (seed, epoch)))
    assert (first == other).all(axis=(1, 2)).mean() < 0.03


def test_everything_off_changes_nothing():
    images = pictures(20)
    assert (augment_images(images, np.arange(20), AugmentSettings(), seed=0, epoch=0) == images).all()
    assert erased_pixels((32, 32), np.arange(20), 0.0, seed=0, epoch=0) is None


@pytest.mark.parametrize("augment", [CROP_AND_FLIP, AugmentSettings(flip=True), AugmentSettings(crop=1)])
def test_the_dataset_is_not_written_to(augment):
    images = pictures(20)
    before = images.copy()
    augmented = augment_images(images, np.arange(20), augment, seed=0, epoch=0)
    assert augmented.shape == images.shape and augmented.dtype == np.uint8
    augmented[...] = 0
    assert (images == before).all()


def test_crop_offsets_and_flips_are_uniform_and_independent():
    y, x, mirrored = placement(size=8, pad=2, count=10_000)
    counts = np.histogramdd([y, x, mirrored], bins=[5, 5, 2], range=[(0, 5), (0, 5), (0, 2)])[0]
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 95  # 49 degrees of freedom: beyond 95 once in 10,000
    assert abs(mirrored.mean() - 0.5) < 0.02


def test_crop_pads_with_black_and_reaches_both_ends():
    images = pictures(2, size=4)
    first, last = random_crop(images, 3, np.array([0.0, 1 - 2**-53]), np.array([0.0, 1 - 2**-53]))
    assert (first[:, 3:, 3:] == images[0, :, :1, :1]).all() and first.sum() == images[0, :, 0, 0].sum()
    assert (last[:, :1, :1] == images[1, :, 3:, 3:]).all() and last.sum() == images[1, :, 3, 3].sum()


@pytest.mark.parametrize("shape", [(32, 32), (8, 8), (28, 40), (5, 3)])
def test_erased_rectangles_keep_to_the_limits(shape):
    erased = erased_pixels(shape, np.arange(5000), 1.0, seed=0, epoch=0)
    rows, columns = erased.any(2), erased.any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    assert (erased.sum((1, 2)) == heights * widths).all()  # rows x columns: one rectangle, if each is one run
    assert (np.diff(rows.astype(int), axis=1, prepend=0, append=0).clip(0).sum(1) <= 1).all()
    assert (np.diff(columns.astype(int), axis=1, prepend=0, append=0).clip(0).sum(1) <= 1).all()
    area = (heights * widths / (shape[0] * shape[1]))[heights > 0]
    assert ERASE_AREA[0] <= area.min() and area.max() <= ERASE_AREA[1]
    assert (heights > 0).mean() > 0.99
    if shape == (32, 32):
        aspect = heights / widths
        assert 0.9 < np.exp(np.log(aspect).mean()) < 1.1 and aspect.min() < 0.4 and aspect.max() > 2.5
        assert ((aspect > ERASE_ASPECT[0] * 0.75) & (aspect < ERASE_ASPECT[1] / 0.75)).all()  # whole pixels
        assert area.min() < 0.04 and area.max() > 0.31 and rows.any(0).all() and columns.any(0).all()


def test_erase_probability():
    erased = erased_pixels((32, 32), np.arange(10_000), 0.3, seed=1, epoch=0)
    assert abs(erased.any((1, 2)).mean() - 0.3) < 0.02


def test_an_image_too_small_to_erase_from_stays_whole():
    assert not erased_pixels((1, 1), np.arange(10), 1.0, seed=0, epoch=0).any()


@pytest.mark.parametrize("key, value", [("crop", -1), ("crop", 1.5), ("flip", 1), ("erase", 1.1), ("erase", -0.1),
                                        ("mixup", -0.2), ("cutmix", float("inf"))])
def test_settings_out_of_range(key, value):
    with pytest.raises(UserError, match=f"augment.{key} = "):
        check(AugmentSettings, {key: value}, "augment")


def test_unknown_setting_names_the_nearest():
    with pytest.raises(UserError, match=r"augment.crops: unknown key; did you mean crop"):
        check(AugmentSettings, {"crops": 4}, "augment")
