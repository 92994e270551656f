import logging
import os
from pathlib import Path

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data, load_raw
from models.settings import UserError, check
from tests.engine.data.conftest import files, read_image, save_image


def fill(folder: Path, classes: dict[str, int], first: int = 0) -> Path:
    """Class folders of so many images each; no two images are alike."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save_image(folder / name / f"{i}.png", first)
            first += 1
    return folder


def settings(path: Path, **options):
    return check(DATASETS["folder"][0], {"name": "folder", "path": str(path), "size": 8, **options}, "data")


def error_of(path: Path) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        load_raw(settings(path))
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"data.path = {str(path)!r}: ")
    return line


def test_class_folders(tmp_path):
    fill(tmp_path, {"10": 3, "2": 2, "1": 4})
    raw = load_raw(settings(tmp_path))
    assert raw.classes == ["1", "10", "2"] and raw.test is None and raw.val is None and raw.mean is None
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2 and raw.train.images.shape == (9, 3, 8, 8)
    second = torch.tensor(read_image(tmp_path / "10" / "1.png", files(8, "crop"))).permute(2, 0, 1)
    assert raw.train.images[5].equal(second)
    squashed = load_raw(settings(tmp_path, fit="squash")).train.images
    assert not squashed.equal(raw.train.images)


def test_images_lie_at_any_depth_and_others_are_counted(tmp_path, caplog):
    fill(tmp_path, {"a": 1, "b": 1})
    save_image(tmp_path / "a" / "deep" / "er" / "x.JPG", 50)
    save_image(tmp_path / "a" / ".hidden" / "x.jpg", 51)
    save_image(tmp_path / ".ipynb_checkpoints" / "x.jpg", 52)
    save_image(tmp_path / "b" / "._x.jpg", 53)
    save_image(tmp_path / "loose.jpg", 54)
    for name in ("notes.txt", "more.txt"):
        (tmp_path / "a" / name).touch()
    raw = load_raw(settings(tmp_path))
    assert raw.classes == ["a", "b"] and raw.train.labels.tolist() == [0, 0, 1]
    assert "2 files are not images and are ignored: 2 .txt" in caplog.text
    assert "1 image lies outside" in caplog.text


def test_splits_that_are_there_are_used(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 4})
    fill(tmp_path / "val", {"a": 1, "b": 1}, 20)
    fill(tmp_path / "test", {"a": 2, "b": 1}, 30)
    raw = load_raw(settings(tmp_path))
    assert [part.labels.tolist() for part in (raw.train, raw.val, raw.test)] == [[0] * 3 + [1] * 4, [0, 1], [0, 0, 1]]
    data = build_data(settings(tmp_path), SplitSettings(test=0.5, val=0.5), seed=0)
    assert data.test is not None and len(data.test) == 3 and len(data.val) == 2 and len(data.train) == 7


def test_a_test_set_is_held_out_where_there_is_none(tmp_path):
    fill(tmp_path / "train", {"a": 10, "b": 20})
    first, other = (build_data(settings(tmp_path), SplitSettings(test=0.2, val=0.25), seed) for seed in (0, 1))
    assert torch.bincount(first.test.labels).tolist() == [2, 4] and torch.bincount(first.val.labels).tolist() == [2, 4]
    assert first.test.images.equal(other.test.images) and not first.val.images.equal(other.val.images)
    assert first.mean == pytest.approx((first.train.images.double().mean((0, 2, 3)) / 255).tolist())


def test_a_test_folder_without_labels_is_not_used(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 5, "b": 5})
    save_image(tmp_path / "test" / "1.png", 90)
    assert load_raw(settings(tmp_path)).test is None
    assert "no class folders in test" in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"train": 2, "car": 2})
    assert load_raw(settings(tmp_path)).classes == ["car", "train"]


def test_other_folders_beside_train_are_named(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path, {"extra": 1})
    load_raw(settings(tmp_path))
    assert "only its folder train is used, not 'extra'" in caplog.text
    fill(tmp_path / "test", {"a": 1}, 9)
    load_raw(settings(tmp_path))
    assert "only its folders train and test are used, not 'extra'" in caplog.text


def test_links_do_not_multiply_images(tmp_path):
    root = fill(tmp_path / "set", {"a": 1, "b": 1})
    fill(tmp_path, {"elsewhere": 2}, 10)
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    raw = load_raw(settings(root))
    assert raw.classes == ["a", "b", "c"] and raw.train.labels.tolist() == [0, 0, 1, 2, 2]


def test_links_that_lead_nowhere_and_hidden_names_are_told_once(tmp_path, caplog):
    root = fill(tmp_path / "set", {"a": 5, "b": 5})
    (root / "gone").symlink_to("nowhere", target_is_directory=True)
    (root / "a" / "notes").symlink_to("nowhere")
    (root / "a" / "round").symlink_to("round")
    (root / "again").symlink_to(root, target_is_directory=True)
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    save_image(root / "b" / "._0.png", 90)
    save_image(root / ".ipynb_checkpoints" / "0.png", 91)
    with caplog.at_level(logging.INFO, "hybridmerge.data"):
        raw = load_raw(settings(root))
    assert raw.classes == ["a", "b"] and len(raw.train) == 10
    said = caplog.text
    broken = ", ".join(repr(str(root / name)) for name in ("gone", "a/notes", "a/round"))
    assert said.count("3 broken links are ignored: ") == 1 and all(part in said for part in broken.split(", "))
    assert "2 links to folders are not followed" in said and "2 hidden names are ignored" in said


def test_a_broken_link_that_should_be_an_image_is_an_error(tmp_path):
    fill(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "1.png").symlink_to("gone.png")
    assert "1 of 3 images cannot be read" in error_of(tmp_path) and "(broken link to 'gone.png')" in error_of(tmp_path)


def test_images_are_told_by_their_content(tmp_path, caplog):
    fill(tmp_path, {"a": 1, "b": 1})
    save_image(tmp_path / "a" / "x.jpg", 30).rename(tmp_path / "a" / "no extension")
    save_image(tmp_path / "b" / "x.png", 31).rename(tmp_path / "b" / "x.dat")
    (tmp_path / "b" / "x.txt").write_text("BM is how a bitmap begins")
    os.mkfifo(tmp_path / "b" / "pipe")
    raw = load_raw(settings(tmp_path))
    assert raw.train.labels.tolist() == [0, 0, 1, 1] and raw.train.paths[1].endswith("no extension")
    assert "1 file is not an image and is ignored: 1 .txt" in caplog.text
    assert "1 file cannot be opened and is ignored: " in caplog.text and "b/pipe' (not a file)" in caplog.text
    (tmp_path / "b" / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "b" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    line = error_of(tmp_path)
    assert "2 of 6 images cannot be read" in line and "page.jpg' (not JPEG, PNG" in line
    assert "phone.heic' (HEIC; convert it to JPEG or PNG)" in line


@pytest.mark.parametrize("name", ["two words", "Ærø 猫", "new\nline", "=cmd()", "$x^2$", "'quoted'", "a" * 251])
def test_any_name_works(tmp_path, name):
    fill(tmp_path, {name: 1, "other": 1})
    (tmp_path / name / "0.png").rename(tmp_path / name / f"{name}.png")
    raw = load_raw(settings(tmp_path))
    assert sorted(raw.classes) == sorted([name, "other"])
    assert str(tmp_path / name / f"{name}.png") in raw.train.paths
    (tmp_path / name / f"{name}.png").write_bytes(b"")
    assert "(empty file)" in error_of(tmp_path)


def test_a_name_that_is_not_utf_8(tmp_path):
    fill(tmp_path, {"a": 1})
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    os.rename(save_image(tmp_path / "x.png", 5), folder + b"/x.png")
    assert "1 class folder has a name that is not UTF-8: 'caf\\udce9'; rename them" in error_of(tmp_path)


def test_all_errors_are_in_the_log(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 1, **dict.fromkeys("bcdef", 0)})
    fill(tmp_path / "test", {"zebra": 1}, 10)
    assert "5 class folders hold no images: 'b', 'c', 'd', ...; fill or remove them" in error_of(tmp_path)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.strip() for error in errors[1:6]] == [repr(name) for name in "bcdef"]
    assert "'zebra'" in errors[-1]


def test_missing_and_empty_folders_show_the_layout(tmp_path):
    save_image(tmp_path / "flat" / "a.jpg", 0)
    save_image(tmp_path / "halves" / "train" / "a.jpg", 0)
    save_image(tmp_path / "halves" / "test" / "a.jpg", 1)
    for path, reason in (
        (tmp_path / "none", "not found"),
        (tmp_path / "flat" / "a.jpg", "is a file"),
        (tmp_path / "flat", "no class folders"),
        (tmp_path / "halves", "no class folders"),
    ):
        line = error_of(path)
        assert reason in line and "expected PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg" in line


def test_a_validation_folder_without_classes(tmp_path):
    save_image(fill(tmp_path / "train", {"a": 1, "b": 1}).parent / "val" / "x.png", 5)
    assert "no class folders in val" in error_of(tmp_path)


def test_empty_and_single_classes_are_named(tmp_path):
    assert "a single class, 'only'" in error_of(fill(tmp_path / "one", {"only": 3}))
    line = error_of(fill(tmp_path / "two", {"a": 1, "bare": 0}))
    assert "1 class folder holds no images: 'bare'; fill or remove them" in line


def test_classes_that_differ_between_splits(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    fill(tmp_path / "test", {"a": 1, "b": 0}, 10)
    with caplog.at_level(logging.WARNING):
        assert load_raw(settings(tmp_path)).test.labels.tolist() == [0]
    assert "test has no images of 2 classes: 'b', 'c'" in caplog.text
    fill(tmp_path / "test", {"zebra": 1}, 20)
    assert "test has classes that train does not have: 'zebra'" in error_of(tmp_path)


def test_damaged_images_of_all_splits_are_named_together(tmp_path):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path / "test", {"a": 1, "b": 1}, 10)
    for path in (tmp_path / "train" / "a" / "1.png", tmp_path / "test" / "b" / "0.png"):
        path.write_bytes(path.read_bytes()[:100])
    line = error_of(tmp_path)
    assert "2 of 6 images cannot be read" in line and "repair or delete them" in line


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 1, "b": 1})
    scandir = os.scandir

    def refuse(path):  # a folder's mode would not: root may read everything
        if Path(path) == tmp_path / "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "a' cannot be read (Permission denied); make it readable or move it away" in error_of(tmp_path)


def test_settings(tmp_path):
    assert settings(tmp_path, size=None).size is None and settings(tmp_path).fit == "crop"
    for key, value in (("size", 0), ("fit", "pad"), ("size", 8.0)):
        with pytest.raises(UserError, match=f"data.{key} = "):
            settings(tmp_path, **{key: value})


NFC, NFD = "é", "e\u0301"


def test_the_same_letters_in_other_bytes_are_one_class_in_one_place(tmp_path):
    """An archive from macOS has decomposed names: the same classes, images, order and fingerprint come out."""
    found = []
    for root, accent in ((tmp_path / "linux", NFC), (tmp_path / "macos", NFD)):
        for seed, name in enumerate(("f", accent, "ez")):
            for split in ("train", "test"):
                for i, file in enumerate(("z", accent, "a")):
                    save_image(root / split / name / f"{file}.png", 10 * seed + i + 100 * (split == "test"))
        found.append(build_data(settings(root), SplitSettings(val=0), seed=0))
    linux, macos = found
    assert linux.classes == ["ez", "f", NFC] and macos.classes == ["ez", "f", NFD], "names keep their bytes"
    assert macos.train.images.equal(linux.train.images) and macos.test.labels.equal(linux.test.labels)
    assert macos.fingerprint() == linux.fingerprint()


@pytest.mark.parametrize(("train", "other"), [(NFC, NFD), (NFD, NFC)])
def test_splits_that_spell_a_class_in_other_bytes(tmp_path, train, other, caplog):
    fill(tmp_path / "train", {"a": 2, train: 2})
    fill(tmp_path / "test", {"a": 1, other: 2}, first=50)
    raw = load_raw(settings(tmp_path))
    assert raw.classes == ["a", train] and raw.test.labels.tolist() == [0, 1, 1]
    assert "has no images of" not in caplog.text


def test_two_class_folders_of_one_name(tmp_path):
    fill(tmp_path, {"a": 2, NFC: 2, NFD: 2})
    line = error_of(tmp_path)
    assert "1 class has two folders, whose names differ only in Unicode's form" in line
    assert r"'e\u0301' and '\xe9'; move their images into one, or rename one" in line


def test_two_files_of_one_name_and_classes_that_look_alike_are_said(tmp_path, caplog):
    fill(tmp_path, {"cat": 1, "Cat": 1, "ca\u200bt": 1, "dog": 1})
    for seed, name in enumerate((NFC, NFD)):
        save_image(tmp_path / "dog" / f"{name}.png", 50 + seed)
    raw = load_raw(settings(tmp_path))
    assert len(raw.train) == 6
    assert "1 name is that of two files and differs only in Unicode's form" in caplog.text
    assert r"e\u0301.png' and" in caplog.text
    assert r"1 class name is spelled in several ways: 'Cat' and 'cat' and 'ca\u200bt'" in caplog.text


def test_the_path_may_be_typed_in_other_bytes(tmp_path):
    fill(tmp_path / f"B{NFD}" / "sub", {"a": 1, "b": 1})
    assert load_raw(settings(tmp_path / f"B{NFC}" / "sub")).classes == ["a", "b"]
