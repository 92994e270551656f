"""torchvision's loader on a tree of the dataset's layout with a few images."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data, load_raw
from models.settings import UserError, check
from tests.engine.data.conftest import files, read_image, save_image

CLASSES = ("banded", "cracked", "woven")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two partitions of three classes, two images of each in each split; they differ in which images those are."""
    home = tmp_path / "dtd" / "dtd"
    names = {name: [f"{name}/{name}_{i:04}.jpg" for i in range(6)] for name in CLASSES}
    for seed, file in enumerate(file for each in names.values() for file in each):
        save_image(home / "images" / file, seed, (20, 16))
    (home / "labels").mkdir()
    for partition in (1, 2):
        for i, split in enumerate(("train", "val", "test")):
            at = 2 * ((i + partition) % 3)
            lines = [file for each in names.values() for file in each[at : at + 2]]
            (home / "labels" / f"{split}{partition}.txt").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def settings(root: Path, **options):
    return check(DATASETS["dtd"][0], {"name": "dtd", "root": str(root), "size": 8, **options}, "data")


def error_of(root: Path, **options) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        load_raw(settings(root, **options))
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"data.root = {str(root)!r}: ")
    return line


def test_the_official_split_is_used(root):
    raw = load_raw(settings(root))
    assert raw.classes == list(CLASSES) and raw.mean is None
    for i, arrays in enumerate((raw.train, raw.val, raw.test)):
        assert arrays.images.shape == (6, 3, 8, 8) and arrays.labels.tolist() == [0, 0, 1, 1, 2, 2]
        file = root / "dtd" / "dtd" / "images" / "cracked" / f"cracked_{2 * ((i + 1) % 3) + 1:04}.jpg"
        assert arrays.images[3].equal(torch.tensor(read_image(file, files(8, "crop"))).permute(2, 0, 1))
    data = build_data(settings(root), SplitSettings(test=0.5, val=0.5), seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)


def test_the_partition_decides(root):
    first, second = (load_raw(settings(root, partition=partition)) for partition in (1, 2))
    assert first.val.images.equal(second.train.images) and not first.train.images.equal(second.train.images)
    for partition in (0, 11):
        with pytest.raises(UserError, match=r"data.partition = "):
            settings(root, partition=partition)


def test_without_a_network(tmp_path):
    line = error_of(tmp_path / "new" / "deep")
    assert "no dtd/dtd there, and fetching it failed (" in line and "dtd-r1.0.1.tar.gz" in line
    assert not (tmp_path / "new").exists()


def test_an_unpacking_that_fails_leaves_nothing_that_passes_for_the_dataset(tmp_path, monkeypatch):
    def half(self):
        (self._images_folder / "banded").mkdir(parents=True)
        raise EOFError("Compressed file ended")

    monkeypatch.setattr("torchvision.datasets.DTD._download", half)
    assert "fetching it failed (Compressed file ended)" in error_of(tmp_path)
    assert not (tmp_path / "dtd").exists() and tmp_path.is_dir()


def test_what_is_missing_from_a_copy_is_named(root):
    home = root / "dtd" / "dtd"
    (home / "images" / "woven" / "woven_0000.jpg").unlink()
    line = error_of(root)
    assert "1 of 18 images cannot be read: " in line and "woven_0000.jpg' (No such file" in line
    assert f"remove {home} to have it fetched again" in line
    assert "dtd/dtd is damaged" in error_of(root, partition=3)
    (home / "labels" / "val1.txt").write_text("banded/banded_0000.jpg\n")
    assert "labels/val1.txt lists 1 class, not the 3" in error_of(root)
    (home / "labels" / "val1.txt").write_text("nonsense\n")
    assert "dtd/dtd is damaged" in error_of(root)


def test_a_copy_in_another_place_is_pointed_out(root):
    (root / "dtd" / "dtd").rename(root / "here")
    (root / "dtd").rmdir()
    assert f"images and labels lie in {root / 'here'}" in error_of(root / "here")
    (root / "here").rename(root / "dtd")
    assert f"images and labels lie in {root / 'dtd'}" in error_of(root)
