import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.data import build_data
from engine.data.arrays import Arrays, RawData
from engine.data.reading import read_splits
from engine.data.settings import SplitSettings
from engine.data.split import split_data, with_test_set
from engine.tasks import MANY_LABELS
from models.settings import UserError, check
from tests.engine.data.conftest import files, save_image


def numbers(arrays: Arrays) -> list[int]:
    """The numbers that the fixture `raw` wrote into its images."""
    return (arrays.images[:, 0, 0, 0] + 256 * arrays.images[:, 0, 0, 1].long()).tolist()


def test_validation_and_training_share_nothing_and_lose_nothing(raw):
    train, val = split_data(raw, SplitSettings(val=0.2), seed=0)
    assert sorted(numbers(train) + numbers(val)) == list(range(len(raw.train)))
    label_of = dict(zip(numbers(raw.train), raw.train.labels.tolist(), strict=True))
    for part in (train, val):
        assert [label_of[number] for number in numbers(part)] == part.labels.tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_each_class_holds_out_its_share(raw, fraction):
    _, val = split_data(raw, SplitSettings(val=fraction), seed=1)
    sizes = torch.bincount(raw.train.labels)
    expected = [min(max(1, int(n * fraction + 0.5)), n - 1) for n in sizes.tolist()]
    assert torch.bincount(val.labels).tolist() == expected


def test_part_keeps_the_validation_images_and_is_nested(raw):
    before: set[int] | None = None
    vals = []
    for part in (0.05, 0.3, 0.5, 1.0):
        train, val = split_data(raw, SplitSettings(val=0.1, part=part), seed=0)
        vals.append(numbers(val))
        assert not set(numbers(train)) & set(vals[-1])
        assert before is None or before < set(numbers(train))
        before = set(numbers(train))
    assert all(val == vals[0] for val in vals)


def test_part_is_stratified_and_keeps_every_class(raw):
    train, val = split_data(raw, SplitSettings(val=0.0, part=0.001), seed=0)
    assert torch.bincount(train.labels).tolist() == [1] * 10
    assert len(val) == 0 and val.images.shape[1:] == raw.train.images.shape[1:]
    train, _ = split_data(raw, SplitSettings(val=0.0, part=0.5), seed=0)
    assert torch.bincount(train.labels).tolist() == [10 + 5 * label for label in range(10)]


def test_the_seed_decides(raw):
    first, again, other = (numbers(split_data(raw, SplitSettings(), seed)[1]) for seed in (0, 0, 1))
    assert first == again != other


def test_the_split_never_changes():
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    raw = RawData(Arrays(images, torch.arange(40) % 4), Arrays(images[:0], torch.arange(0)), list("abcd"))
    train, val = split_data(raw, SplitSettings(val=0.2, part=0.25), seed=7)
    assert val.images.flatten().tolist() == [4, 7, 13, 20, 22, 23, 29, 34]
    assert train.images.flatten().tolist() == [5, 8, 14, 16, 19, 21, 30, 35]


def test_a_class_that_cannot_spare_an_image_is_named(make_arrays, caplog):
    arrays = Arrays(make_arrays(5, size=4).images, torch.tensor([0, 0, 0, 0, 1]))
    raw = RawData(arrays, make_arrays(2, size=4, seed=1), classes=["many", "one only"])
    with caplog.at_level(logging.WARNING):
        train, val = split_data(raw, SplitSettings(val=0.25), seed=0)
    assert val.labels.tolist() == [0] and sorted(train.labels.tolist()) == [0, 0, 0, 1]
    assert "'one only'" in caplog.text and "'many'" not in caplog.text


def test_copies_of_an_image_stay_on_one_side(make_arrays, caplog):
    images = make_arrays(50, size=4).images.repeat_interleave(2, 0)  # every image twice
    labels = torch.arange(50).repeat_interleave(2) % 5
    raw = RawData(Arrays(images, labels), make_arrays(2, size=4, seed=1), list("abcde"))
    for seed in range(5):
        train, val = split_data(raw, SplitSettings(val=0.2), seed)  # of ten pairs in each class
        assert torch.bincount(val.labels).tolist() == [4] * 5
        assert len(torch.cat([train.images.unique(dim=0), val.images.unique(dim=0)]).unique(dim=0)) == 50
        assert len(train.images.unique(dim=0)) == 40
    assert not caplog.text


def test_copies_in_the_test_set_are_counted_and_stay(raw, caplog):
    leaky = RawData(raw.train, Arrays(raw.train.images[:3], raw.train.labels[:3]), raw.classes)
    train, val = split_data(leaky, SplitSettings(), seed=0)
    assert "3 of 3 test images are copies" in caplog.text
    assert len(train) + len(val) == len(raw.train)


def test_identical_images_throughout_do_not_empty_the_training_set():
    same = Arrays(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20) % 2)
    train, val = split_data(RawData(same, same, ["a", "b"]), SplitSettings(val=0.5), seed=0)
    assert (len(train), len(val)) == (20, 0)


def test_a_validation_split_that_is_there_is_used_whole(raw, make_arrays):
    given = make_arrays(7, size=2, channels=1, seed=3)
    train, val = split_data(RawData(raw.train, raw.test, raw.classes, val=given), SplitSettings(val=0.3), seed=0)
    assert val is given and len(train) == len(raw.train)


@pytest.mark.parametrize(
    "key, value",
    [
        ("val", 1.0),
        ("val", -0.1),
        ("part", 0),
        ("part", 1.5),
        ("part", float("nan")),
        ("val", "0.1"),
        ("val", True),
        ("test", 1.0),
        ("test", -0.1),
        ("test_seed", -1),
    ],
)
def test_fractions_out_of_range(key, value):
    with pytest.raises(UserError, match=f"split.{key} = "):
        check(SplitSettings, {key: value}, "split")


def test_no_numpy_generator_is_touched(raw):
    before = np.random.get_state()[1].copy()
    split_data(raw, SplitSettings(), seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_a_twentieth_of_ten_images_is_one():
    images = torch.arange(300, dtype=torch.int64)
    pixels = torch.stack([images % 256, images // 256], 1).to(torch.uint8)[:, :, None, None]
    raw = RawData(Arrays(pixels, images % 30), Arrays(pixels[:0], images[:0]), [str(i) for i in range(30)])
    _, val = split_data(raw, SplitSettings(val=0.05), seed=0)
    assert torch.bincount(val.labels).tolist() == [1] * 30


def without_test(raw: RawData) -> RawData:
    return replace(raw, test=None)


def test_a_test_set_that_is_there_is_used_whole(raw):
    assert with_test_set(raw, SplitSettings(test=0.5)) is raw


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_each_class_gives_its_share_to_the_test_set(raw, fraction):
    parted = with_test_set(without_test(raw), SplitSettings(test=fraction))
    assert sorted(numbers(parted.train) + numbers(parted.test)) == list(range(len(raw.train)))
    sizes = torch.bincount(raw.train.labels)
    expected = [min(max(1, int(n * fraction + 0.5)), n - 1) for n in sizes.tolist()]
    assert torch.bincount(parted.test.labels).tolist() == expected


def test_no_test_set_if_none_is_wanted(raw):
    parted = with_test_set(without_test(raw), SplitSettings(test=0.0))
    assert len(parted.test) == 0 and parted.test.images.shape[1:] == raw.train.images.shape[1:]
    assert numbers(parted.train) == numbers(raw.train)


def test_the_test_seed_alone_decides_on_the_test_set(raw):
    splits = [SplitSettings(test_seed=seed) for seed in (0, 0, 1)]
    first, again, other = (numbers(with_test_set(without_test(raw), split).test) for split in splits)
    assert first == again != other
    validation = numbers(split_data(raw, SplitSettings(val=0.2), seed=0)[1])
    assert len(set(first) & set(validation)) < len(first) / 2  # a seed's two splits are not one


def test_the_test_split_never_changes():
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None]
    parted = with_test_set(RawData(Arrays(images, torch.arange(40) % 4), None, list("abcd")), SplitSettings())
    assert parted.test.images.flatten().tolist() == [1, 14, 17, 24, 27, 30, 32, 35]


def test_the_test_set_parts_no_copies_even_of_different_classes(make_arrays):
    images = make_arrays(60, size=4).images.repeat(3, 1, 1, 1)
    labels = torch.cat([torch.arange(60) % 3, torch.arange(60) % 3, (torch.arange(60) < 6).long()])
    for seed in range(10):
        split = SplitSettings(test=0.3, test_seed=seed)
        parted = with_test_set(RawData(Arrays(images, labels), None, list("abc")), split)
        train, test = (len(part.images.unique(dim=0)) for part in (parted.train, parted.test))
        assert train + test == 60 and test > 0 and len(parted.train) + len(parted.test) == 180


def test_a_class_that_cannot_spare_a_test_image_is_named(make_arrays, caplog):
    raw = RawData(Arrays(make_arrays(5, size=4).images, torch.tensor([0, 0, 0, 0, 1])), None, ["many", "one only"])
    assert with_test_set(raw, SplitSettings()).test.labels.tolist() == [0]
    assert "split.test = 0.2: 1 class cannot spare a test image: 'one only'" in caplog.text


@pytest.fixture
def many(make_arrays) -> RawData:
    """Fifty images, each there twice, of three labels: half have the first, one the second, none the third."""
    images = make_arrays(50, size=4).images.repeat(2, 1, 1, 1)
    labels = torch.zeros(100, 3)
    labels[::2, 0], labels[[7, 57], 1] = 1, 1
    return RawData(Arrays(images, labels), None, ["half", "rare", "never"], task=MANY_LABELS)


def test_many_labels_are_held_out_by_image_and_copies_together(many, caplog):
    parted = with_test_set(many, SplitSettings(test=0.2))
    train, val = split_data(parted, SplitSettings(val=0.25, part=0.5), seed=0)
    assert (len(parted.test), len(val), len(train)) == (20, 20, 30)
    assert parted.task is MANY_LABELS and val.labels.dtype == torch.float32 and val.labels.shape == (20, 3)
    for part in (parted.test, val):
        assert len(part.images.unique(dim=0)) == 10
    assert "split.test = 0.2: " in caplog.text and "labels have no positive test image: " in caplog.text
    assert "labels have no positive validation image: " in caplog.text and "'never'" in caplog.text
    assert "'half'" not in caplog.text and "cannot spare" not in caplog.text
    rows = zip(many.train.images, many.train.labels)
    label_of = {image.numpy().tobytes(): label.tolist() for image, label in rows}
    for part in (parted.test, val, train):
        assert [label_of[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


def test_labels_of_another_kind_are_refused(make_arrays):
    images = make_arrays(3, size=4).images
    for labels in (torch.zeros(3, 2, dtype=torch.int64), torch.full((3, 2), 0.5), torch.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(AssertionError):
            Arrays(images, labels)


def fold(raw: RawData, folds: int, k: int, **others) -> RawData:
    return with_test_set(raw, SplitSettings(folds=folds, fold=k, **others))


@pytest.mark.parametrize("folds", [2, 3, 5, 7, 20])
def test_every_image_is_the_test_of_one_fold(raw, folds):
    """And trains in all others; any two parts differ by at most one image, of each class and of all."""
    cut = [fold(raw, folds, k) for k in range(folds)]
    tests = [numbers(part.test) for part in cut]
    assert sorted(number for test in tests for number in test) == sorted(numbers(raw.train))
    for part, test in zip(cut, tests):
        assert sorted(numbers(part.train) + test) == sorted(numbers(raw.train)) and part.val is None
    counts = torch.stack([torch.bincount(part.test.labels, minlength=10) for part in cut])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1
    assert max(map(len, tests)) - min(map(len, tests)) <= 1


def test_folds_are_a_function_of_the_test_seed(raw):
    first, again, other = (numbers(fold(raw, 5, 2, test_seed=seed).test) for seed in (0, 0, 1))
    assert first == again != other
    assert numbers(fold(raw, 5, 2, test=0.5, val=0.3).test) == first  # split.test has no part in it


def test_folds_never_change():
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None]
    raw = RawData(Arrays(images, torch.arange(20) % 3), None, list("abc"))
    assert [fold(raw, 3, k).test.images.flatten().tolist() for k in range(3)] == [
        [6, 7, 9, 10, 11, 17, 18],
        [0, 1, 3, 5, 8, 16, 19],
        [2, 4, 12, 13, 14, 15],
    ]


def test_validation_is_taken_off_the_rest_of_a_fold(raw):
    part = fold(raw, 5, 1, val=0.25)
    train, val = split_data(part, SplitSettings(folds=5, fold=1, val=0.25), seed=0)
    assert sorted(numbers(train) + numbers(val) + numbers(part.test)) == sorted(numbers(raw.train))
    assert len(val) == pytest.approx(0.25 * len(part.train), abs=5)
    train, val = split_data(part, SplitSettings(folds=5, fold=1, val=0.0), seed=0)
    assert len(val) == 0 and numbers(train) == numbers(part.train)


def test_no_copy_crosses_folds_not_even_of_another_class(make_arrays):
    images = make_arrays(60, size=4).images.repeat(3, 1, 1, 1)
    labels = torch.cat([torch.arange(60) % 3, torch.arange(60) % 3, (torch.arange(60) < 6).long()])
    raw = RawData(Arrays(images, labels), None, list("abc"))
    for seed in range(5):
        cut = [fold(raw, 4, k, test_seed=seed) for k in range(4)]
        for part in cut:
            train, test = (len(split.images.unique(dim=0)) for split in (part.train, part.test))
            assert train + test == 60 and len(part.train) + len(part.test) == 180
        assert max(len(part.test) for part in cut) - min(len(part.test) for part in cut) <= 3  # groups are of 3 images


def test_single_images_even_out_what_copies_leave(make_arrays):
    """A group of 9 copies is in one part; the other parts get that many single images more."""
    images = make_arrays(51, size=4).images
    images = torch.cat([images, images[:1].repeat(9, 1, 1, 1)])
    raw = RawData(Arrays(images, torch.zeros(60, dtype=torch.int64)), None, ["a"])
    assert [len(fold(raw, 5, k).test) for k in range(5)] == [12] * 5


def test_own_validation_images_are_folded_and_own_test_images_left(raw, make_arrays, caplog):
    given = Arrays(torch.full((20, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    given.images[:, 0, 1, 1] = torch.arange(20)  # no copies
    whole = replace(raw, val=given)
    with caplog.at_level(logging.INFO):
        cut = [fold(whole, 4, k) for k in range(4)]
    assert "split.folds = 4: the dataset's own 10 test images are not used" in caplog.text
    assert sum(len(part.test) for part in cut) == len(raw.train) + 20
    assert all(int((part.test.images[:, 0, 0, 0] == 255).sum()) >= 2 for part in cut)
    assert all(part.val is None and len(part.train) + len(part.test) == len(raw.train) + 20 for part in cut)


def test_files_are_joined_with_their_paths(tmp_path):
    paths = [save_image(tmp_path / f"{i}.png", i) for i in range(12)]
    samples = {"train": (paths[:8], torch.arange(8) % 2), "val": (paths[8:], torch.arange(4) % 2)}
    for cache in ("memory", "none"):
        whole = read_splits(samples, ["a", "b"], files(8, cache=cache), "data")
        cut = [fold(whole, 3, k) for k in range(3)]
        assert sorted(path for part in cut for path in part.test.paths) == sorted(map(str, paths))
        index = cut[0].train.paths.index(str(paths[9]))
        assert torch.equal(cut[0].train.read(torch.tensor([index])), whole.val.read(torch.tensor([1])))


@pytest.mark.parametrize(
    "sizes, words",
    [
        ([9, 3, 2], "2 classes have fewer images, copies counted once: 'b' (3), 'c' (2); use split.folds=2 or less"),
        ([9, 9, 1], "1 class has fewer images, copies counted once: 'c' (1); add images, or take the classes out"),
    ],
)
def test_a_class_too_small_for_the_folds_is_named(make_arrays, sizes, words):
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    raw = RawData(Arrays(make_arrays(len(labels), size=4).images, labels), None, list("abc"))
    with pytest.raises(UserError, match=re.escape(f"split.folds = 4: {words}")):
        fold(raw, 4, 0)
    twice = RawData(Arrays(raw.train.images.repeat(4, 1, 1, 1), labels.repeat(4)), None, list("abc"))
    with pytest.raises(UserError, match="split.folds = 4: "):
        fold(twice, 4, 0)


def test_folds_without_a_choice_of_one(raw):
    with pytest.raises(UserError, match="split.folds = 5: .*split.fold=0"):
        with_test_set(raw, SplitSettings(folds=5))


def test_many_labels_are_folded_by_image(many):
    cut = [fold(many, 5, k) for k in range(5)]
    assert [len(part.test) for part in cut] == [20] * 5
    assert all(len(part.test.images.unique(dim=0)) == 10 for part in cut)
    with pytest.raises(UserError, match="split.folds = 60: only 50 images, copies counted once"):
        fold(many, 60, 0)


@pytest.mark.parametrize(
    ("split", "test", "reason"),
    [
        ({"test": 0.0}, None, "split.test = 0"),
        ({"test": 0.2}, None, "split.test = 0.2, but no class has an image to spare"),
        ({"test": 0.2}, 0, "the dataset's own test set is empty"),
    ],
)
def test_why_there_are_no_test_images(split, test, reason):
    """Classes of one image each, or a test set without images."""
    pixels = torch.arange(3 * 4, dtype=torch.uint8).reshape(3, 1, 2, 2)
    train = Arrays(pixels, torch.arange(3))
    raw = RawData(train, None if test is None else train.take(torch.arange(test)), ["a", "b", "c"])
    data = build_data(None, SplitSettings(**split), 0, raw)
    assert data.absent == {"test": reason, "val": "split.val = 0.1, but no class has an image to spare"}
    assert build_data(None, SplitSettings(test=0.0, val=0.0), 0, raw).absent["val"] == "split.val = 0"
