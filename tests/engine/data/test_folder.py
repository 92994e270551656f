import logging
import os
from pathlib import Path

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data
from engine.data.folder import load_folder
from engine.data.images import read_image
from models.settings import UserError, check
from tests.engine.data.conftest import files, save_image


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
        load_folder(settings(path))
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"data.path = {str(path)!r}: ")
    return line


def test_class_folders(tmp_path):
    fill(tmp_path, {"10": 3, "2": 2, "1": 4})
    raw = load_folder(settings(tmp_path))
    assert raw.classes == ["1", "10", "2"] and raw.test is None and raw.val is None and raw.mean is None
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2 and raw.train.images.shape == (9, 3, 8, 8)
    second = torch.tensor(read_image(tmp_path / "10" / "1.png", files(8, "crop"))).permute(2, 0, 1)
    assert raw.train.images[5].equal(second)
    squashed = load_folder(settings(tmp_path, fit="squash")).train.images
    assert not squashed.equal(raw.train.images)


def test_images_lie_at_any_depth_and_others_are_counted(tmp_path, caplog):
    fill(tmp_path, {"a": 1, "b": 1})
    save_image(tmp_path / "a" / "deep" / "er" / "x.JPG", 50)
    save_image(tmp_path / "a" / ".hidden" / "x.jpg", 51)
    save_image(tmp_path / ".ipynb_checkpoints" / "x.jpg", 52)
    save_image(tmp_path / "b" / "._x.jpg", 53)
    save_image(tmp_path / "loose.jpg", 54)
    for name in ("notes.txt", "more.txt", "Thumbs.db"):
        (tmp_path / "a" / name).touch()
    raw = load_folder(settings(tmp_path))
    assert raw.classes == ["a", "b"] and raw.train.labels.tolist() == [0, 0, 1]
    assert "3 files are no images by their names and are ignored: 2 .txt, 1 .db" in caplog.text
    assert "1 images lie in" in caplog.text


def test_splits_that_are_there_are_used(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 4})
    fill(tmp_path / "val", {"a": 1, "b": 1}, 20)
    fill(tmp_path / "test", {"a": 2, "b": 1}, 30)
    raw = load_folder(settings(tmp_path))
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
    assert load_folder(settings(tmp_path)).test is None
    assert "no class folders in test" in caplog.text


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"train": 2, "car": 2})
    assert load_folder(settings(tmp_path)).classes == ["car", "train"]


def test_other_folders_beside_train_are_named(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path, {"valid": 1})
    load_folder(settings(tmp_path))
    assert "only train, val and test are used, not valid" in caplog.text


def test_links_do_not_multiply_images(tmp_path):
    root = fill(tmp_path / "set", {"a": 1, "b": 1})
    fill(tmp_path, {"elsewhere": 2}, 10)
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    raw = load_folder(settings(root))
    assert raw.classes == ["a", "b", "c"] and raw.train.labels.tolist() == [0, 0, 1, 2, 2]


def test_missing_and_empty_folders_show_the_layout(tmp_path):
    save_image(tmp_path / "flat" / "a.jpg", 0)
    save_image(tmp_path / "halves" / "train" / "a.jpg", 0)
    save_image(tmp_path / "halves" / "test" / "a.jpg", 1)
    for path, reason in ((tmp_path / "none", "not found"), (tmp_path / "flat" / "a.jpg", "is a file"),
                         (tmp_path / "flat", "no class folders"), (tmp_path / "halves", "no class folders")):
        line = error_of(path)
        assert reason in line and "expected PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg" in line


def test_a_validation_folder_without_classes(tmp_path):
    save_image(fill(tmp_path / "train", {"a": 1, "b": 1}).parent / "val" / "x.png", 5)
    assert "no class folders in val" in error_of(tmp_path)


def test_empty_and_single_classes_are_named(tmp_path):
    assert "a single class, 'only'" in error_of(fill(tmp_path / "one", {"only": 3}))
    line = error_of(fill(tmp_path / "two", {"a": 1, "bare": 0}))
    assert "1 class folders hold no image: 'bare'; fill or remove them" in line


def test_classes_that_differ_between_splits(tmp_path, caplog):
    fill(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    fill(tmp_path / "test", {"a": 1, "b": 0}, 10)
    with caplog.at_level(logging.WARNING):
        assert load_folder(settings(tmp_path)).test.labels.tolist() == [0]
    assert "test has no images of 2 classes: 'b', 'c'" in caplog.text
    fill(tmp_path / "test", {"zebra": 1}, 20)
    assert "test has classes that train has not: 'zebra'" in error_of(tmp_path)


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
    assert "a cannot be read (Permission denied); make it readable or move it away" in error_of(tmp_path)


def test_settings(tmp_path):
    assert settings(tmp_path, size=None).size is None and settings(tmp_path).fit == "crop"
    for key, value in (("size", 0), ("fit", "pad"), ("size", 8.0)):
        with pytest.raises(UserError, match=f"data.{key} = "):
            settings(tmp_path, **{key: value})
