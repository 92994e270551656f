"""A competition's layout: only train trains; what the sample file and the test images say otherwise is told."""

import logging
from pathlib import Path

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data, load_raw
from engine.data.sources.kaggle import find_kaggle
from models.settings import UserError, check
from tests.engine.data.conftest import save_image

LABELS = ("1", "10", "2")


@pytest.fixture
def root(tmp_path) -> Path:
    """Three labels of six images, four images to predict, and a sample file."""
    for i in range(18):
        save_image(tmp_path / "train" / LABELS[i % 3] / f"{i}.png", i)
    for i in range(4):
        save_image(tmp_path / "test" / f"{i}.png", 100 + i)
    sample(tmp_path, ["0.png,1", "1.png,1", "2.png,1", "3.png,1"])
    return tmp_path


def sample(root: Path, rows: list[str]) -> None:
    (root / "sample_submission.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")


def settings(root: Path, **options):
    return check(DATASETS["kaggle"][0], {"name": "kaggle", "path": str(root), "size": 8, **options}, "data")


def warnings_of(root: Path, caplog) -> list[str]:
    caplog.clear()
    load_raw(settings(root))
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_only_train_trains(root, caplog):
    with caplog.at_level(logging.INFO, "hybridmerge.data"):
        raw = load_raw(settings(root))
    assert raw.classes == ["1", "10", "2"] and raw.test is None and raw.val is None
    assert raw.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and raw.train.shape == (3, 8, 8)
    assert "reading 18 image files" in caplog.text and not [r for r in caplog.records if r.levelno > logging.INFO]
    same = load_raw(check(DATASETS["folder"][0], {"path": str(root / "train"), "size": 8}, "data"))
    assert same.classes == raw.classes and same.train.images.equal(raw.train.images)
    data = build_data(settings(root), SplitSettings(test=0.3, val=0.2), seed=0)
    assert torch.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert torch.bincount(data.val.labels).tolist() == [1, 1, 1]


def test_images_to_predict_are_found_and_not_decoded(root):
    (root / "test" / "0.png").write_bytes(b"")
    assert [path.name for path in find_kaggle(settings(root)).unlabelled] == ["0.png", "1.png", "2.png", "3.png"]
    assert len(load_raw(settings(root)).train) == 18


def test_training_needs_neither_test_images_nor_a_sample(root, caplog):
    for path in (root / "test").iterdir():
        path.unlink()
    assert "no images in test: there is nothing to predict" in warnings_of(root, caplog)[0]
    (root / "test").rmdir()
    (root / "sample_submission.csv").unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO, "hybridmerge.data"):
        load_raw(settings(root))
    assert caplog.text.count("no folder test: training needs none, and there is nothing to predict") == 1
    assert "WARNING" not in caplog.text


def test_another_layout_is_shown_the_one_that_is_expected(root, tmp_path):
    save_image(tmp_path / "flat" / "train" / "0.png", 0)
    (tmp_path / "bare").mkdir()
    for path, reason in (
        (tmp_path / "none", "not found"),
        (root / "sample_submission.csv", "is a file"),
        (tmp_path / "bare", "no folder train in it"),
        (tmp_path / ("a" * 300), "not found"),
        (tmp_path / "flat", "no label folders in train"),
    ):
        with pytest.raises(UserError) as caught:
            load_raw(settings(path))
        line = str(caught.value)
        assert line.startswith(f"data.path = {str(path)!r}: {reason}") and "\n" not in line
        assert "expected PATH/train/LABEL/*.jpg, PATH/test/*.jpg, and optionally PATH/sample_submission.csv" in line


def test_labels_of_the_sample_that_no_folder_has(root, caplog):
    sample(root, ["0.png,1", "1.png,cat", "2.png,", "3.png,dog"])
    said = warnings_of(root, caplog)
    (line,) = said
    assert "2 labels in 'sample_submission.csv' not among the label folders: 'cat', 'dog'" in line


def test_ids_and_images_that_do_not_meet(root, caplog):
    sample(root, ["0,1", "1.png,1", "7,1", "8,1"])  # with or without the extension
    said = warnings_of(root, caplog)
    assert len(said) == 2 and "2 of 4 ids in 'sample_submission.csv' have no image in test: '7', '8'" in said[0]
    assert "2 of 4 test images are not in 'sample_submission.csv'" in said[1] and "test/2.png'" in said[1]


@pytest.mark.parametrize("form", ["part/{}.png", "part/{}", r"part\{}.png", "./part/{}.png", "{}.png", "{}"])
def test_ids_are_paths_or_names_as_predictions_read_them(root, caplog, form):
    (root / "test" / "part").mkdir()
    for i in range(4):
        (root / "test" / f"{i}.png").rename(root / "test" / "part" / f"{i}.png")
    sample(root, [f"{form.format(i)},1" for i in range(4)])
    assert not warnings_of(root, caplog)


def test_a_sample_that_is_no_table(root, caplog):
    (root / "sample_submission.csv").write_bytes(b"\xff\xfe")
    said = warnings_of(root, caplog)
    assert len(said) == 1 and "sample_submission.csv': not UTF-8" in said[0]


def test_a_labelled_test_folder_is_pointed_out(root, caplog):
    save_image(root / "test" / "10" / "5.png", 50)
    sample(root, [f"{i}.png,1" for i in (0, 1, 2, 3, 5)])
    said = warnings_of(root, caplog)
    assert len(said) == 1 and "treated as unlabelled: '10'; if they have labels, set data.name=folder" in said[0]


def test_other_folders_are_named(root, caplog):
    save_image(root / "val" / "1" / "0.png", 60)
    assert "only its folders train and test are used, not 'val'" in warnings_of(root, caplog)[0]


def test_labels_without_images_and_a_single_one(root):
    (root / "train" / "bare").mkdir()
    with pytest.raises(UserError, match="1 class folder holds no images: 'bare'; fill or remove them"):
        load_raw(settings(root))
    for name in ("bare", "10", "2"):
        (root / "train" / name).rename(root / name)
    with pytest.raises(UserError, match="a single class, '1'; .*PATH/train/LABEL"):
        load_raw(settings(root))
