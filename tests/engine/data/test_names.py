"""One name in two forms of Unicode, and files that were named on another system."""

from __future__ import annotations

import os

import pytest

from engine.data.formats import has_image_extension
from engine.data.names import Files, alike, differing, on_disk, places, split_of, twins

NFC, NFD = "é", "e\u0301"


def test_twins():
    assert twins(["a", NFC, "b", NFD, "b", NFC]) == [[NFC, NFD]] and twins(["a", "A", NFC]) == []
    assert differing([NFC, NFD]) == r"'\xe9' and 'e\u0301'"


def test_places_of_names():
    assert places(["a", NFC], [NFD, "a"]) == [1, 0]
    assert places(["a", "b"], ["a", "c"]) is None and places(["a"], ["a", "b"]) is None
    assert places([NFC, NFD], [NFD, NFC]) == [1, 0], "names that an older version kept apart"
    assert places([NFC, "x"], [NFD, NFC]) is None


def test_whole_numbers_that_look_alike():
    assert alike("1") == alike("1.0") == alike("1,00") and len(set(map(alike, ("1", "10", "1.5", "1.05", "01")))) == 5


@pytest.mark.parametrize("other", ["CAT", " c at", "ca\u00a0t", "c\u200bat", "ｃａｔ", "cat\ufeff"])
def test_names_that_look_alike(other):
    assert alike("cat") == alike(other) != alike("cât")


def test_a_path_on_disk_in_other_bytes(tmp_path):
    (tmp_path / NFD / NFC).mkdir(parents=True)
    (tmp_path / NFD / NFC / f"{NFD}.png").touch()
    assert on_disk(tmp_path / NFC / NFD / f"{NFC}.png") == tmp_path / NFD / NFC / f"{NFD}.png"
    assert on_disk(tmp_path / NFC / "no") == tmp_path / NFC / "no"
    assert on_disk(tmp_path / "a\0b") == tmp_path / "a\0b"


def test_files_by_names_of_other_systems(tmp_path):
    (tmp_path / "in" / NFD).mkdir(parents=True)
    for name in (
        "1.png",
        "2.txt",
        f"{NFD}/3.JPG",
        "4.png",
        "4.jpg",
        "5",
        "5.png",
        f"{NFC}.gif",
        f"{NFD}.gif",
        "v1.2.png",
    ):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "6.png").mkdir()
    files = Files(tmp_path / "in", has_image_extension)

    def found(name: str) -> list[str]:
        return [path.relative_to(tmp_path / "in").as_posix() for path in files.find(name)]

    assert found("1.png") == found("1") == found("./1") == ["1.png"]
    assert found(r"..\in\1.png") == ["../in/1.png"] and found(rf".\{NFC}\3") == [f"{NFD}/3.JPG"]
    assert found("2") == found("6") == found("6.png") == found("") == found("a\0b") == []
    assert found("4") == ["4.jpg", "4.png"] and found("5") == ["5"] and found("v1.2") == ["v1.2.png"]
    assert found(NFC) == found(NFD) == [f"{NFD}.gif", f"{NFC}.gif"], "which one is not clear"
    assert found(f"{NFC}.gif") == [f"{NFC}.gif"] and found(f"{NFD}.gif") == [f"{NFD}.gif"]


def test_a_path_through_a_thousand_folders(tmp_path):
    """A cell of a table may hold anything."""
    deep = "/".join(["x"] * 1500)
    assert on_disk(tmp_path / deep) == tmp_path / deep
    assert Files(tmp_path, has_image_extension).find(f"{deep}/1.png") == []


def test_a_folder_is_listed_once_for_all_names_in_folders_that_do_not_exist(tmp_path, monkeypatch):
    """As a list for each name would be, the time for a table with a wrong data.images would grow with its square."""
    (tmp_path / NFD / "study").mkdir(parents=True)
    (tmp_path / NFD / "study" / "1.png").touch()
    files, listed, listdir = Files(tmp_path, has_image_extension), [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [listed.append(str(path)), listdir(path)][1])
    assert files.find(f"{NFC}/study/1") == [tmp_path / NFD / "study" / "1.png"]
    assert not any(files.find(f"patient{i}/study/1.png") for i in range(9))
    assert files.find(f"{NFC}/study/1.png") == [tmp_path / NFD / "study" / "1.png"]
    assert listed.count(str(tmp_path)) == 1 and max(map(listed.count, listed)) == 1


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["Train", "training ", "TRAINING", "train_set", "Training Set", "trainset", "trn", "images_train"]),
        ("train", ["01_Train", "TrainingData", "train-images", "Data Train", "Training_Image_Set"]),
        ("val", ["VALID", "validation", "Val-Set", "dev", "Dev_Set", "2. Validation"]),
        ("test", ["TEST", "testing", "test data", "eval", "Evaluation", "Test_Images", "holdout"]),
        (None, ["", "set", "trains", "1", "train_2", "contest", "data", "images", "validator", "trainer", "dataset"]),
    ],
)
def test_names_of_splits(split, names):
    assert {split_of(name) for name in names} == {split}
