import numpy as np
import pytest

from engine.data.augmentation.augment import (
    BOX,
    ERASE_AREA,
    ERASE_ASPECT,
    RECTANGLE,
    TRIES,
    augment_images,
    erased_pixels,
    jitter,
    random_crop,
    random_scale,
)
from engine.data.settings import AugmentSettings
from models.settings import UserError, check

CROP_AND_FLIP = AugmentSettings(crop=4, flip=True)
NEW = [AugmentSettings(**one) for one in ({"vflip": True}, {"rotate90": True}, {"scale": 0.2}, {"jitter": 0.4})]
EVERYTHING = AugmentSettings(crop=4, flip=True, vflip=True, rotate90=True, scale=0.2, jitter=0.4)


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


@pytest.mark.parametrize("augment", [CROP_AND_FLIP, EVERYTHING, *NEW])
def test_an_image_does_not_depend_on_its_batch(augment):
    images, index = pictures(64), np.arange(1000, 1064)
    whole = augment_images(images, index, augment, seed=3, epoch=5)
    erased = erased_pixels((32, 32), index, 0.5, seed=3, epoch=5)
    for part in (slice(0, 1), slice(10, 17), [40, 3, 3, 63], slice(63, None, -1)):
        assert (augment_images(images[part], index[part], augment, seed=3, epoch=5) == whole[part]).all()
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


@pytest.mark.parametrize(
    "augment", [CROP_AND_FLIP, AugmentSettings(flip=True), AugmentSettings(crop=1), EVERYTHING, *NEW]
)
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


@pytest.mark.parametrize(
    "key, value",
    [
        ("crop", -1),
        ("crop", 1.5),
        ("flip", 1),
        ("erase", 1.1),
        ("erase", -0.1),
        ("mixup", -0.2),
        ("cutmix", float("inf")),
        ("vflip", 1),
        ("rotate90", "yes"),
        ("scale", 1.0),
        ("scale", -0.1),
        ("jitter", 1.0),
        ("jitter", -0.1),
    ],
)
def test_settings_out_of_range(key, value):
    with pytest.raises(UserError, match=f"augment.{key} = "):
        check(AugmentSettings, {key: value}, "augment")


def test_unknown_setting_names_the_nearest():
    with pytest.raises(UserError, match=r"augment.crops: unknown key; did you mean crop"):
        check(AugmentSettings, {"crops": 4}, "augment")


@pytest.mark.parametrize("augment", NEW)
@pytest.mark.parametrize("seed, epoch", [(3, 6), (4, 5), (5, 3)])
def test_another_epoch_or_seed_turns_scales_and_jitters_otherwise(augment, seed, epoch):
    images, index = pictures(200), np.arange(200)
    first, other = (augment_images(images, index, augment, *key) for key in ((3, 5), (seed, epoch)))
    alike = (first == other).all(axis=(1, 2, 3)).mean()
    chance = {"vflip": 1 / 2, "rotate90": 1 / 4}.get(next(iter(augment.model_fields_set)), 0)
    assert abs(alike - chance) < 0.12


def test_earlier_draws_stay_what_they_were():
    assert (BOX + 4 * TRIES, RECTANGLE + 4 * TRIES) == (108, 44)  # and 64 to 67: no key is used twice
    images, index = pictures(8), np.arange(8)
    flipped = augment_images(images, index, AugmentSettings(flip=True), seed=0, epoch=0)
    mirrored = (flipped == images[..., ::-1]).all((1, 2, 3))
    assert mirrored.tolist() == [False, True, True, True, True, False, False, True]
    assert (flipped[~mirrored] == images[~mirrored]).all()
    with_more = augment_images(images, index, AugmentSettings(flip=True, vflip=True), seed=0, epoch=0)
    assert all((a == b).all() or (a == b[:, ::-1]).all() for a, b in zip(with_more, flipped))


def test_vertical_flips_and_quarter_turns_are_exact_and_uniform():
    images, index = pictures(2000, size=8), np.arange(2000)
    flipped = augment_images(images, index, AugmentSettings(vflip=True), seed=0, epoch=0)
    upside_down = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (flipped[~upside_down] == images[~upside_down]).all() and abs(upside_down.mean() - 0.5) < 0.05
    turned = augment_images(images, index, AugmentSettings(rotate90=True), seed=0, epoch=0)
    quarters = np.stack([(turned == np.rot90(images, k, (2, 3))).all((1, 2, 3)) for k in range(4)])
    assert (quarters.sum(0) == 1).all() and np.abs(quarters.mean(1) - 0.25).max() < 0.05
    assert abs(np.corrcoef(upside_down, quarters[0])[0, 1]) < 0.1  # drawn apart


@pytest.mark.parametrize("least, shape", [(0.08, (64, 64)), (0.5, (64, 64)), (0.3, (40, 64)), (0.95, (64, 48))])
def test_scaled_parts_keep_to_the_limits(least, shape):
    """A ramp's slope and values tell how large a part is and where it lies."""
    count, (height, width) = 1000, shape
    ramps = np.zeros((count, 2, height, width), np.uint8)
    ramps[:, 0] = np.linspace(0, 255, height).round()[:, None]
    ramps[:, 1] = np.linspace(0, 255, width).round()
    scaled = random_scale(ramps, least, (0, 0, 0, np.arange(count)[:, None])).astype(float)
    y, x = scaled[:, 0].mean(2), scaled[:, 1].mean(1)
    assert (np.diff(y) >= -0.51).all() and (np.diff(x) >= -0.51).all()
    # away from the border, where the ramp ends half a pixel early
    rows = (y[:, -2] - y[:, 1]) / (height - 3) / 255 * (height - 1) * height
    columns = (x[:, -2] - x[:, 1]) / (width - 3) / 255 * (width - 1) * width
    area, aspect = rows * columns / (height * width), rows / columns
    whole = (scaled == ramps).all((1, 2, 3))
    assert area.min() > least * 0.9 and area.max() < 1.05
    assert aspect[~whole].min() > 3 / 4 * 0.9 and aspect[~whole].max() < 4 / 3 * 1.1
    if least < 0.9:
        assert whole.mean() < 0.01 and abs(np.log(aspect).mean()) < 0.1 + abs(np.log(height / width)) / 2
        assert area.min() < least + 0.05 and y.min() < 10 and y.max() > 245 and x.min() < 10 and x.max() > 245


def test_scaling_the_whole_image_changes_nothing():
    images = pictures(20)
    assert (random_scale(images, 1 - 2**-40, (0, 0, 0, np.arange(20)[:, None])) == images).all()


def test_scaling_enlarges_bilinearly():
    images = np.zeros((200, 1, 16, 16), np.uint8)
    images[..., 8:] = 200  # one edge
    scaled = random_scale(images, 0.1, (0, 0, 0, np.arange(200)[:, None]))
    assert (scaled == scaled[:, :, :1]).all() and (np.diff(scaled[:, 0, 0].astype(int)) >= 0).all()
    between = ((scaled > 0) & (scaled < 200))[:, 0, 0].sum(1)
    assert between.max() >= 2 and between.max() <= 5 and scaled.max() == 200


def test_jitter_multiplies_brightness_and_contrast():
    images, most = pictures(4, size=64), 0.4
    middle, end = np.full(4, 0.5), np.full(4, 1 - 2**-53)
    assert (jitter(images, most, middle, middle) == images).all()
    darker = jitter(images, most, np.zeros(4), middle)
    assert (darker == np.rint(images * 0.6)).all()
    duller = jitter(images, most, middle, np.zeros(4)).astype(float)
    assert np.abs(duller.mean((1, 2, 3)) - images.mean((1, 2, 3))).max() < 0.1
    np.testing.assert_allclose(duller.std((1, 2, 3)), 0.6 * images.std((1, 2, 3)), rtol=0.01)
    most_of_both = jitter(images, most, end, end)
    assert most_of_both.dtype == np.uint8 and most_of_both.min() == 0 and most_of_both.max() == 255


def test_jitter_factors_are_uniform():
    images = np.full((4000, 1, 2, 2), 100, np.uint8)  # without contrast: brightness alone changes it
    values = augment_images(images, np.arange(4000), AugmentSettings(jitter=0.5), seed=0, epoch=0)[:, 0, 0, 0]
    assert values.min() >= 50 and values.max() <= 150
    counts = np.histogram(values, bins=10, range=(49.5, 150.5))[0]
    assert np.abs(counts - 400).max() < 80
