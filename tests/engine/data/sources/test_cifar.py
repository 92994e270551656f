"""torchvision's loading code on folders of CIFAR's layout with a few images and their own checksums."""

import hashlib
import logging
import os
import pickle
import socket
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from engine.data import DATASETS, SplitSettings, build_data
from engine.data.sources.cifar import TIMEOUT
from models.settings import UserError

EACH = 4  # images in each file
SOURCES = {"cifar10": (CIFAR10, "labels", 10), "cifar100": (CIFAR100, "fine_labels", 100)}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=list(SOURCES))
def copy(request, tmp_path, monkeypatch) -> tuple[str, Path, np.ndarray]:
    """Name, root and training pixels, (N, 3072), of an intact copy without its archive; no network."""
    source, label_key, num_classes = SOURCES[request.param]
    base = tmp_path / source.base_folder
    base.mkdir()
    pixels = []
    for attribute in ("train_list", "test_list"):
        sums = []
        for number, (name, _) in enumerate(getattr(source, attribute)):
            values = np.random.default_rng(number).integers(0, 256, (EACH, 3072), dtype=np.uint8)
            labels = [(number * EACH + i) % num_classes for i in range(EACH)]
            (base / name).write_bytes(pickle.dumps({"data": values, label_key: labels}))
            sums.append([name, md5(base / name)])
            pixels += [values] if attribute == "train_list" else []
        monkeypatch.setattr(source, attribute, sums)
    meta = base / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: [f"name {i}" for i in range(num_classes)]}))
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    unplug(monkeypatch, urllib.error.URLError("no network"))
    return request.param, tmp_path, np.concatenate(pixels)


def unplug(monkeypatch, error: Exception) -> None:
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def pack(copy, monkeypatch) -> Path:
    """Replaces the folder by an archive of it."""
    name, root, _ = copy
    source = SOURCES[name][0]
    archive = root / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / source.base_folder, source.base_folder)
    for path in (root / source.base_folder).iterdir():
        path.unlink()
    (root / source.base_folder).rmdir()
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    return archive


def load(name: str, root: Path | str):
    settings, loader = DATASETS[name]
    return loader(settings(root=str(root)))


def error_of(name: str, root: Path | str) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        load(name, root)
    line = str(caught.value)
    assert "\n" not in line and f"data.root = {os.path.abspath(os.path.expanduser(root))!r}" in line
    return line


def test_an_intact_copy_needs_no_network(copy, capsys):
    name, root, pixels = copy
    raw = load(name, root)
    assert raw.train.images.shape == (len(pixels), 3, 32, 32) and raw.test.images.shape == (EACH, 3, 32, 32)
    assert (raw.train.images.flatten(1).numpy() == pixels).all() and raw.train.images.is_contiguous()
    assert raw.train.labels.tolist() == [i % SOURCES[name][2] for i in range(len(pixels))]
    assert raw.classes == [f"name {i}" for i in range(SOURCES[name][2])]
    assert capsys.readouterr().out == ""


def test_published_statistics(copy):
    name, root, _ = copy
    data = build_data(DATASETS[name][0](root=str(root)), SplitSettings(val=0.0), seed=0)
    published = {"cifar10": (0.4914, 0.2470), "cifar100": (0.5071, 0.2673)}
    assert (data.mean[0], data.std[0]) == published[name]


def test_an_archive_is_unpacked_without_network(copy, monkeypatch):
    name, root, pixels = copy
    pack(copy, monkeypatch)
    assert len(load(name, root).train) == len(pixels)


def test_a_damaged_copy_is_repaired_from_the_archive(copy, monkeypatch, caplog):
    name, root, pixels = copy
    source = SOURCES[name][0]
    pack(copy, monkeypatch)
    load(name, root)
    damaged = root / source.base_folder / source.train_list[0][0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        raw = load(name, root)
    assert f"missing or damaged: {damaged.name};" in caplog.text
    assert (raw.train.images.flatten(1).numpy() == pixels).all()


def test_offline_names_the_ways_out(copy):
    name, root, _ = copy
    source = SOURCES[name][0]
    line = error_of(name, root / "new")
    for part in ("no network", source.base_folder, source.filename, "data.name=npz", "--cfg digits/"):
        assert part in line
    assert not (root / "new").exists()


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        urllib.error.HTTPError("u", 503, "busy", None, None),
        OSError(28, "disk full"),
    ],
)
def test_other_failures_of_the_network_and_the_disk(copy, monkeypatch, error):
    unplug(monkeypatch, error)
    before = socket.getdefaulttimeout()
    assert str(error) in error_of(copy[0], copy[1] / "new")
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize("which", ["train_list", "test_list", "meta"])
@pytest.mark.parametrize("fault", ["truncated", "removed"])
def test_a_damaged_copy_is_named(copy, which, fault):
    name, root, _ = copy
    source = SOURCES[name][0]
    file = source.meta["filename"] if which == "meta" else getattr(source, which)[0][0]
    path = root / source.base_folder / file
    path.write_bytes(path.read_bytes()[:-1]) if fault == "truncated" else path.unlink()
    assert f"missing or damaged: {file}, and fetching" in error_of(name, root)


def test_a_damaged_archive_is_named_and_kept(copy, monkeypatch):
    name, root, _ = copy
    archive = pack(copy, monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-50])
    assert f"missing or damaged: {archive.name}, and fetching" in error_of(name, root)
    assert archive.exists()


def test_a_download_that_breaks_off_leaves_nothing(copy, monkeypatch):
    name, root, _ = copy

    def break_off(url, filename, chunk_size=0):
        Path(filename).write_bytes(b"half")
        raise ConnectionResetError("reset")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", break_off)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    assert "reset" in error_of(name, root / "new")
    assert not (root / "new").exists()


def test_a_download_of_other_content_is_refused(copy, monkeypatch):
    name, root, _ = copy
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, path: Path(path).write_bytes(b"<html>"))
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    assert "corrupted" in error_of(name, root / "new")


def test_a_root_that_cannot_be_written_or_is_a_file(copy, monkeypatch):
    name, root, _ = copy
    (root / "file").touch()
    error_of(name, root / "file")
    error_of(name, root / "file" / "below")
    error_of(name, root / ("long" * 100))

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.makedirs", read_only)
    assert "Read-only file system" in error_of(name, root / "new")


def test_the_inner_folder_as_root(copy):
    name, root, _ = copy
    inner = root / SOURCES[name][0].base_folder
    assert f"set data.root to the folder that holds it, {str(root)!r}" in error_of(name, inner)


def test_a_user_that_does_not_exist(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error_of(copy[0], "~no-such-user/data")
    assert not Path("~no-such-user").exists()


def test_a_server_that_does_not_answer_is_given_up(copy, monkeypatch):
    seen = []

    def slow(*_, **__):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", slow)
    error_of(copy[0], copy[1] / "new")
    assert set(seen) == {TIMEOUT}
