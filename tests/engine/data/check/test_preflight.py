"""The preflight: what it says of each fault, and that training says the same."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from engine.data import DATASETS, load_raw
from engine.data.check.preflight import Report, check_source, kind_of, source_settings
from models.settings import UserError, check
from tests.engine.data.conftest import save_image
from tests.engine.data.sources.test_folder import fill


def settings(path: Path, kind: str = "folder", **options):
    return check(DATASETS[kind][0], {"name": kind, "path": str(path), "size": 8, **options}, "data")


def report_of(path: Path, kind: str = "folder", **options) -> Report:
    return check_source(settings(path, kind, **options))


def trains(path: Path, kind: str = "folder", **options) -> bool:
    try:
        load_raw(settings(path, kind, **options))
    except UserError:
        return False
    return True


def contents(path: Path) -> dict[str, bytes | str]:
    """Everything below a folder, links as what they say."""
    return {
        str(entry): os.readlink(entry) if entry.is_symlink() else entry.read_bytes()
        for entry in path.rglob("*")
        if entry.is_symlink() or entry.is_file()
    }


@pytest.fixture
def root(tmp_path) -> Path:
    fill(tmp_path / "train", {"ant": 6, "bee": 5})
    fill(tmp_path / "test", {"ant": 1, "bee": 2}, 20)
    return tmp_path


def test_a_sound_source(root):
    report = report_of(root)
    assert report.classes == ["ant", "bee"] and report.counts == {"train": [6, 5], "test": [1, 2]}
    assert report.images == {"train": 11, "test": 3} and report.findings == [] and report.notes == []
    assert {known[:] for known in report.facts} == {("PNG", "RGB", 12, 9, False)} and len(report.facts) == 14


def test_the_advice_for_bad_images_works(root):
    """data.on_error=skip is named where it helps: for training images, unless a class would lose all of its own."""

    def advice() -> str:
        (error,) = report_of(root).errors
        with pytest.raises(UserError, match="cannot be read") as caught:
            load_raw(settings(root))
        assert str(caught.value).endswith(f"; {error.fix}"), "training gives the same advice"
        return error.fix

    (root / "train" / "ant" / "bad.jpg").write_bytes(b"")
    assert advice() == "repair or delete them, or set data.on_error=skip to train without them"
    assert trains(root, on_error="skip") and not report_of(root, on_error="skip").errors
    (root / "test" / "bee" / "bad.jpg").write_bytes(b"")
    fix = "; data.on_error=skip leaves out those of the training images, never validation or test images"
    assert advice() == f"repair or delete them{fix}"
    (root / "train" / "ant" / "bad.jpg").unlink()
    assert advice() == "repair or delete them" and not trains(root, on_error="skip")
    (root / "test" / "bee" / "bad.jpg").unlink()
    for path in (root / "train" / "ant").iterdir():
        path.write_bytes(b"")
    assert advice() == "repair or delete them" and not trains(root, on_error="skip")


def broken_files(root: Path) -> list[str]:
    """One of each kind in the class ant; returns their names."""
    ant = root / "train" / "ant"
    (ant / "empty.jpg").touch()
    (ant / "page.jpg").write_text("<html>")
    save_image(ant / "cut.jpg", 70, (64, 64))
    (ant / "cut.jpg").write_bytes((ant / "cut.jpg").read_bytes()[:-200])
    (ant / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    (ant / "gone.png").symlink_to("nowhere.png")
    (ant / "round.png").symlink_to("round.png")
    os.mkfifo(ant / "pipe.png")
    save_image(ant / "large.png", 71, (100, 60))
    Image.new("F", (4, 4)).save(ant / "float.tif")
    return [
        "cut.jpg",
        "empty.jpg",
        "float.tif",
        "gone.png",
        "large.png",
        "page.jpg",
        "phone.heic",
        "pipe.png",
        "round.png",
    ]


def test_every_bad_file_is_named_once_with_its_reason(root, caplog):
    names = broken_files(root)
    before = contents(root / "test")
    report = report_of(root, max_pixels=5000)
    (error,) = report.errors
    assert error.text == "9 of 23 images cannot be read"
    for item, name in zip(error.items, names, strict=True):
        assert item.startswith(repr(str(root / "train" / "ant" / name)) + " (")
    assert error.fix == "repair or delete them, or set data.on_error=skip to train without them"
    # Training names the same files, in its log, with the same reasons.
    assert not trains(root, max_pixels=5000)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"cannot be read: {item}" for item in error.items] and contents(root / "test") == before


def test_left_out_on_demand(root):
    names = broken_files(root)
    report = report_of(root, max_pixels=5000, on_error="skip")
    assert not report.errors and trains(root, max_pixels=5000, on_error="skip")
    assert report.warnings[0].text == f"{len(names)} training images cannot be read and are left out"
    (root / "test" / "bee" / "0.png").write_bytes(b"")
    report = report_of(root, max_pixels=5000, on_error="skip")
    assert [finding.text for finding in report.errors] == ["1 validation or test image cannot be read"]
    assert not trains(root, max_pixels=5000, on_error="skip")
    for path in (root / "train" / "bee").iterdir():
        path.write_bytes(b"")
    lost = [finding.text for finding in report_of(root, on_error="skip").errors]
    assert "no image of 1 class can be read: 'bee'; repair them" in lost


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_warnings_are_those_of_training(root, caplog, cache):
    ant, bee = root / "train" / "ant", root / "train" / "bee"
    (bee / "copy.png").write_bytes((ant / "0.png").read_bytes())
    (ant / "twice.png").write_bytes((ant / "1.png").read_bytes())
    (root / "test" / "bee" / "seen.png").write_bytes((bee / "2.png").read_bytes())
    first = Image.new("RGB", (9, 9), "red")
    first.save(ant / "moving.gif", save_all=True, append_images=[Image.new("RGB", (9, 9), "blue")])
    fill(root / "train", {"cat": 2}, 50)
    (ant / "notes.txt").touch()
    (ant / "later").symlink_to("nowhere")
    report = report_of(root)
    assert not report.errors
    texts = [finding.text for finding in report.warnings]
    assert texts == [
        "test has no images of 1 class",
        "1 file is not an image and is ignored",
        "1 broken link is ignored",
        "1 image is a copy of an image with another label",
        "1 file holds more than one image; only the first is used",
        "1 class has fewer than 5 training images",
        "1 train image is a copy of another",
        "1 test image is a copy of one of the train images",
    ]
    pairs = [finding.items for finding in report.warnings if "copy" in finding.text]
    assert pairs[0] == (f"{str(bee / 'copy.png')!r} = {str(ant / '0.png')!r}",)
    assert pairs[2] == (f"{str(root / 'test' / 'bee' / 'seen.png')!r} = {str(bee / '2.png')!r}",)
    assert trains(root, cache=cache)
    said = caplog.text
    for finding in report.warnings[:6]:
        assert said.count(finding.line()) == 1


def test_copies_are_told_by_their_pixels(root):
    ant = root / "train" / "ant"
    Image.open(ant / "0.png").save(ant / "again.bmp")
    (finding,) = report_of(root).warnings
    assert finding.items == (f"{str(ant / 'again.bmp')!r} = {str(ant / '0.png')!r}",)


def test_empty_and_single_classes_and_bad_files_in_one_report(tmp_path):
    fill(tmp_path, {"ant": 5, "bare": 0})
    (tmp_path / "ant" / "x.jpg").touch()
    report = report_of(tmp_path)
    assert report.counts == {"train": [6, 0]}
    texts = [finding.text for finding in report.errors]
    assert texts == ["1 class folder holds no images", "1 of 6 images cannot be read"]
    (tmp_path / "bare").rmdir()
    assert "a single class, 'ant'" in [finding.text for finding in report_of(tmp_path).errors]
    assert not trains(tmp_path)


def test_classes_that_may_be_one(tmp_path):
    for i in range(20):
        save_image(tmp_path / ["Cat", "cat", "c at", "dog"][i % 4] / f"{i}.png", i, (8, 8))
    found = [finding.line() for finding in report_of(tmp_path).findings]
    said = "1 class name is spelled in several ways: 'Cat' and 'c at' and 'cat'; merge the folders or labels"
    assert len(found) == 1 and found[0].startswith(said)


def test_nothing_can_be_said_of_another_layout(tmp_path):
    with pytest.raises(UserError, match="no class folders in it; expected PATH/CLASS"):
        report_of(tmp_path)


def test_images_to_predict(tmp_path):
    fill(tmp_path / "train", {"1": 5, "2": 5})
    for i in range(3):
        save_image(tmp_path / "test" / f"{i}.png", 50 + i, (30, 20))
    (tmp_path / "test" / "0.png").write_bytes((tmp_path / "train" / "1" / "0.png").read_bytes())
    (tmp_path / "test" / "bad.png").touch()
    report = report_of(tmp_path, "kaggle")
    assert report.images == {"train": 10, "unlabelled": 4} and report.counts == {"train": [5, 5]}
    assert len(report.facts) == 13 and not report.errors and trains(tmp_path, "kaggle")
    assert [finding.text for finding in report.warnings] == [
        "1 unlabelled image cannot be read",
        "1 unlabelled image is a copy of one of the train images",
    ]


def test_a_table(tmp_path):
    fill(tmp_path, {"a": 3, "b": 2})
    rows = [f"a/{i}.png,x,train\n" for i in range(4)] + ["b/0.png,y,train\n", "b/1.png,y,test\n"]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(rows))
    report = report_of(tmp_path / "t.csv", "csv")
    assert report.counts == {"train": [3, 1], "test": [0, 1]}
    assert [(finding.items, finding.error) for finding in report.errors] == [(("'a/3.png'",), True)]
    (tmp_path / "many.csv").write_text("path,red,round\na/0.png,1,1\na/1.png,0,1\n")
    assert report_of(tmp_path / "many.csv", "csv", labels="many").counts == {"train": [1, 2]}


def test_the_kind_is_guessed(tmp_path):
    fill(tmp_path / "plain", {"a": 1})
    fill(tmp_path / "parted" / "train", {"a": 1})
    fill(tmp_path / "parted" / "test", {"a": 1})
    fill(tmp_path / "contest" / "train", {"a": 1})
    save_image(tmp_path / "contest" / "test" / "0.png", 0)
    (tmp_path / "t.csv").touch()
    kinds = {name: kind_of(tmp_path / name) for name in ("plain", "parted", "contest", "t.csv", "none")}
    assert kinds == {"plain": "folder", "parted": "folder", "contest": "kaggle", "t.csv": "csv", "none": "folder"}
    (tmp_path / "parted" / "sample_submission.csv").touch()
    assert kind_of(tmp_path / "parted") == "kaggle"


def test_a_path_that_is_typed_in_other_bytes(tmp_path):
    for seed, name in enumerate(("train/a/1.png", "train/b/1.png", "test/1.png")):
        save_image(tmp_path / "Bu\u0308cher" / name, seed)
    found = source_settings(str(tmp_path / "B\u00fccher"))
    report = check_source(found)
    assert found.name == "kaggle" and report.classes == ["a", "b"] and report.images["unlabelled"] == 1
    for name in ("a.npz", "B.NPZ"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="arrays, which are checked as training starts: data.name=npz"):
            source_settings(str(tmp_path / name))
    (tmp_path / "images.ZIP").touch()
    with pytest.raises(UserError, match="images.ZIP: an archive; unpack it, and give the folder or table"):
        source_settings(str(tmp_path / "images.ZIP"))
