"""Which folders are splits and which are classes, through every door; and what is left out of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from engine.data import load_raw
from engine.data.check.preflight import check_source, kind_of, source_settings
from engine.data.names import is_leftover
from engine.submit.validate import class_folders
from models.settings import UserError
from tests.engine.data.conftest import save_image
from tests.engine.data.sources.test_folder import error_of, fill, settings

FOUR = {"glioma": 2, "healthy": 1, "meningioma": 2, "pituitary": 1}


def counts_of(path: Path, **options) -> dict[str, list[int]]:
    """The number of images of each class of each split, as the preflight and training see them."""
    options = {"layout": "auto", **options}
    report = check_source(source_settings(str(path), "folder", {"size": 8, **options}))
    raw = load_raw(settings(path, **options))
    assert report.classes == raw.classes
    splits = {"train": raw.train, "val": raw.val, "test": raw.test}
    counts = {
        name: [(split.labels == i).sum().item() for i in range(len(raw.classes))]
        for name, split in splits.items()
        if split is not None
    }
    assert counts == {name: report.counts[name] for name in counts} and set(report.counts) == set(counts)
    return counts


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Training", None, "Testing"),
        ("TRAIN", "Valid", "test"),
        ("train_set", "validation_set", "test_set"),
        ("trn", "dev", "eval"),
        ("Training Data", "Dev", "Evaluation"),
    ],
)
def test_splits_by_any_name(tmp_path, train, val, test):
    names = {split: name for split, name in (("train", train), ("val", val), ("test", test)) if name}
    for i, name in enumerate(names.values()):
        fill(tmp_path / name, FOUR, 10 * i)
    assert counts_of(tmp_path) == {split: [2, 1, 2, 1] for split in names}
    assert class_folders(tmp_path) == list(FOUR)


def test_one_split_under_two_names(tmp_path):
    fill(tmp_path / "train", FOUR)
    (tmp_path / "Training").mkdir()
    assert counts_of(tmp_path) == {"train": [2, 1, 2, 1]}, "an empty one is no other"
    fill(tmp_path / "Training", FOUR, 10)
    line = error_of(tmp_path)
    said = "'Training' and 'train' are names of one split, train; keep one, and move the other away"
    assert line.endswith(said)
    with pytest.raises(UserError, match=said):
        class_folders(tmp_path)
    with pytest.raises(UserError, match=said):
        kind_of(tmp_path)


def test_no_training_images(tmp_path):
    fill(tmp_path / "Testing", FOUR)
    line = error_of(tmp_path)
    assert (
        "no training images, only 'Testing'; put a folder train beside it, give it as the path to train on it" in line
    )
    assert counts_of(tmp_path / "Testing") == {"train": [2, 1, 2, 1]}
    for name in ("Train", "Test"):
        fill(tmp_path / "flat", {name: 2})
    assert "no class folders in it; expected PATH/CLASS/*.jpg" in error_of(tmp_path / "flat")
    assert counts_of(tmp_path / "flat", layout="classes") == {"train": [2, 2]}


def test_a_class_called_train_is_said(tmp_path, caplog):
    fill(tmp_path, {"Train": 2, "car": 1, "plane": 1})
    with caplog.at_level(logging.WARNING):
        assert counts_of(tmp_path) == {"train": [2, 1, 1]}
    assert "'Train' is taken for a class beside 'car', 'plane'; if it holds the training images of all" in caplog.text
    caplog.clear()
    assert counts_of(tmp_path, layout="classes") == {"train": [2, 1, 1]}
    assert "taken for a class" not in caplog.text


@pytest.mark.parametrize("name", ["test", "valid", "Testing", "training"])
@pytest.mark.parametrize("nested", [False, True])
def test_other_names_of_splits_beside_classes_are_asked_about(tmp_path, name, nested):
    fill(tmp_path, {"cat": 2, "dog": 1})
    fill(tmp_path / name if nested and name != "training" else tmp_path, {"cat" if nested else name: 2}, 10)
    if nested and name == "training":
        fill(tmp_path, {name: 2}, 20)
    said = f"{name!r} may be a split or a class beside 'cat', 'dog'; move it elsewhere, or the classes into a folder"
    assert said in error_of(tmp_path) and error_of(tmp_path).endswith("or set data.layout=classes")
    with pytest.raises(UserError, match="or give a run with --run instead"):
        class_folders(tmp_path)
    assert len(counts_of(tmp_path, layout="classes")["train"]) == 3


def test_a_split_or_a_class_that_holds_folders(tmp_path):
    for name, kinds in (("train", ("freight", "express")), ("car", ("saloon", "estate"))):
        fill(tmp_path / name, dict.fromkeys(kinds, 1), 10 * len(name))
    said = "'train' may hold the training images or be a class beside 'car'; set data.layout=splits or set"
    assert error_of(tmp_path).endswith(said + " data.layout=classes")
    assert counts_of(tmp_path, layout="splits") == {"train": [1, 1]}
    assert counts_of(tmp_path, layout="classes") == {"train": [2, 2]}


def test_a_class_called_train_whose_kinds_others_have_as_well(tmp_path):
    for i, name in enumerate(("bus", "car", "train")):
        fill(tmp_path / name, {"2019": 1, "2020": 1}, 10 * i)
    said = "'train' may hold the training images or be a class beside 'bus', 'car'; set data.layout=splits or set"
    assert error_of(tmp_path).endswith(said + " data.layout=classes")
    assert counts_of(tmp_path, layout="classes") == {"train": [2, 2, 2]}
    (tmp_path / "car").rename(tmp_path / "test")
    assert counts_of(tmp_path) == {"train": [1, 1], "test": [1, 1]}, "with a second split it is clear"


@pytest.mark.parametrize(
    "train, held_out",
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("pets-Training-v2", "pets-Validation-v2/images"),
        ("train2017", "val2017"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_splits_within_longer_names(tmp_path, train, held_out, labelled):
    fill(tmp_path / train, {"sea": 1, "street": 1})
    fill(tmp_path / held_out, {"sea": 1, "street": 1} if labelled else {"": 2}, 10)
    fill(tmp_path, {"more": 1}, 20)
    outer = [name.partition("/")[0] for name in (train, held_out)]
    said = f"the folders {outer[0]!r}, {outer[1]!r} seem to be splits; call the folders with the classes in them train"
    assert said in error_of(tmp_path) and error_of(tmp_path).endswith("; if they are classes, set data.layout=classes")
    with pytest.raises(UserError, match="seem to be splits"):
        class_folders(tmp_path)
    assert counts_of(tmp_path, layout="classes")["train"][0] in (1, 2)
    for split, name in (("train", train), ("test", held_out)):
        (tmp_path / name).rename(tmp_path / split)
    if labelled:
        assert counts_of(tmp_path) == {"train": [1, 1], "test": [1, 1]}


def test_classes_whose_names_have_words_of_splits(tmp_path):
    fill(tmp_path, {"test tube": 1, "training shoes": 2, "beaker": 1})
    assert counts_of(tmp_path) == {"train": [1, 1, 2]}


def test_splits_within_classes(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        fill(tmp_path / name, {"Training": 2, "test": 1}, 10 * i)
    line = error_of(tmp_path)
    assert (
        "the folders 'cat', 'dog' hold splits: 'Training', 'test'; give one of them as the path if it has all" in line
    )
    assert line.endswith("as in Training/cat, or to use the images of all splits together, set data.layout=classes")
    assert counts_of(tmp_path, layout="classes") == {"train": [3, 3]}


def test_folds_and_other_folders_of_classes(tmp_path):
    for i, name in enumerate(("fold_a", "fold_b", "fold_c")):
        fill(tmp_path / name, {"cat": 1, "dog": 1, f"only in {name}": 1}, 10 * i)
    line = error_of(tmp_path)
    assert "the folders 'fold_a', 'fold_b', 'fold_c' hold no images themselves, but folders of the same" in line
    assert "names: 'cat', 'dog'; " in line
    assert "if those are the classes, give one of the former as the path, or call them train, val and test" in line
    assert line.endswith("if 'fold_a', 'fold_b', 'fold_c' are the classes, set data.layout=classes")
    assert counts_of(tmp_path, layout="classes") == {"train": [3, 3, 3]}
    assert len(counts_of(tmp_path / "fold_a")["train"]) == 3
    with pytest.raises(UserError, match="are the classes, give a run with --run instead"):
        class_folders(tmp_path)
    (tmp_path / "Training").mkdir()
    for name in ("fold_a", "fold_b", "fold_c"):
        (tmp_path / name).rename(tmp_path / "Training" / name)
    assert "hold no images themselves, but folders of the same names" in error_of(tmp_path), "also in a split"


def test_classes_of_splits_that_hold_folders_of_the_same_names(tmp_path):
    for i, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        fill(tmp_path / name, {"left": 1, "right": 2}, 10 * i)
    line = error_of(tmp_path)
    assert "the folders 'cat', 'dog' hold no images themselves, but folders of the same names: 'left', 'right'" in line
    assert line.endswith("if 'cat', 'dog' are the classes, set data.layout=splits")
    assert counts_of(tmp_path, layout="splits") == {"train": [3, 3], "test": [3, 3]}
    assert counts_of(tmp_path, layout="classes") == {"train": [6, 6]}, "train and test"
    assert error_of(tmp_path / "train").endswith("if 'cat', 'dog' are the classes, set data.layout=classes")
    assert counts_of(tmp_path / "train", layout="classes") == {"train": [3, 3]}


def test_classes_may_hold_folders(tmp_path):
    """Of names of their own, or one that all share, as in Tiny ImageNet; also beside images."""
    for i, name in enumerate(("n01", "n02")):
        fill(tmp_path / "tiny" / name, {"images": 2}, 10 * i)
        fill(
            tmp_path / "patients" / name, {f"patient {i}": 1, f"patient {i + 1}": 1, f"patient {i + 9}": 1}, 20 + 10 * i
        )
        fill(tmp_path / "mixed" / name, {"near": 1, "far": 1}, 40 + 10 * i)
        save_image(tmp_path / "mixed" / name / "1.png", 60 + i)
    assert counts_of(tmp_path / "tiny") == {"train": [2, 2]}
    assert counts_of(tmp_path / "patients") == counts_of(tmp_path / "mixed") == {"train": [3, 3]}


@pytest.mark.parametrize("inner", ["dataset", "dataset/images"])
def test_a_folder_around_the_classes(tmp_path, inner):
    fill(tmp_path / "archive" / inner, FOUR)
    line = error_of(tmp_path / "archive")
    assert (
        f"its folder {inner!r} holds no images itself, but the folders 'glioma', 'healthy', 'meningioma', ...; " in line
    )
    assert line.endswith(f"give {str(tmp_path / 'archive' / inner)!r} as the path")
    assert counts_of(tmp_path / "archive" / inner) == {"train": [2, 1, 2, 1]}


def test_a_folder_around_the_splits(tmp_path):
    for name in ("Training", "Testing"):
        fill(tmp_path / "brain" / name, FOUR, len(name))
    (tmp_path / "notes").mkdir()
    assert (
        f"holds no images itself, but the folders 'Testing', 'Training'; give {str(tmp_path / 'brain')!r}"
        in error_of(tmp_path)
    )
    fill(tmp_path / "twice" / "train" / "train", FOUR, 50)
    line = error_of(tmp_path / "twice")
    assert "its folder 'train/train' holds no images itself" in line and line.endswith("move them up, into 'train'")


def test_the_kind_is_guessed_by_any_name(tmp_path):
    fill(tmp_path / "Training", FOUR)
    save_image(tmp_path / "Testing" / "1.png", 50)
    assert kind_of(tmp_path) == "kaggle"
    report = check_source(source_settings(str(tmp_path), None, {"size": 8}))
    assert report.counts == {"train": [2, 1, 2, 1]} and report.images["unlabelled"] == 1
    fill(tmp_path / "Testing", FOUR, 60)
    assert kind_of(tmp_path) == "folder"


def test_a_validation_set_with_labels_is_used_although_the_test_set_has_none(tmp_path):
    fill(tmp_path / "Train", {"a": 2, "b": 2})
    fill(tmp_path / "Valid", {"a": 1, "b": 1}, 10)
    save_image(tmp_path / "test_images" / "1.png", 20)
    assert kind_of(tmp_path) == "folder"
    assert counts_of(tmp_path) == {"train": [2, 2], "val": [1, 1]}


def test_a_test_set_without_labels_in_a_folder_of_its_own(tmp_path):
    fill(tmp_path / "train", {"Cat": 2, "Dog": 2})
    fill(tmp_path / "test", {"unknown": 2}, 10)
    line = error_of(tmp_path)
    assert line.endswith("'unknown'; give them the same names, or set data.name=kaggle if test has no labels")
    assert check_source(source_settings(str(tmp_path), "kaggle", {"size": 8})).images["unlabelled"] == 2
    fill(tmp_path / "test", {"cat": 2}, 20)
    assert error_of(tmp_path).endswith("; give them the same names"), "names in another case are labels"


LEFTOVERS = ("@eaDir", ".AppleDouble", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".thumbnails", "_thumbs", "#recycle")


def test_leftovers_of_storage_systems(tmp_path, caplog):
    fill(tmp_path, {"a": 2, "b": 2})
    for i, name in enumerate(LEFTOVERS):
        save_image(tmp_path / name / "a.jpg", 50 + i)
        save_image(tmp_path / "a" / name / "0.png" / "SYNOPHOTO_THUMB_M.jpg", 60 + i)
    save_image(tmp_path / "~snapshot" / "hourly" / "a" / "1.png", 90)
    for name in ("Thumbs.db", "desktop.ini", "Icon\r", "SYNOFILE_THUMB_M.png"):
        (tmp_path / "b" / name).touch()
    with caplog.at_level(logging.INFO):
        assert counts_of(tmp_path) == {"train": [2, 2]}
    assert "17 leftovers of storage systems are ignored: '#recycle', " in caplog.text
    assert "4 hidden names are ignored" in caplog.text and "not images" not in caplog.text
    assert class_folders(tmp_path) == ["a", "b"]


def test_names_that_are_no_leftovers():
    assert not any(map(is_leftover, ("thumbs", "thumbnails", "recycle", "tmp", "ea", "icon", "desktop", "found")))
    assert not any(map(is_leftover, ("recycled", "Recycler"))), "classes of rubbish may be called so"
