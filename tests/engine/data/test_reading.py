"""All the images of a source: what is said about them before a step is taken, and what is left out if one asks."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.data.reading import Files, decode, read_splits
from engine.tasks import MANY_LABELS, ONE_LABEL, Task
from models.settings import UserError
from tests.engine.data.conftest import files, save_image


@pytest.fixture(params=["memory", "none"])
def cache(request) -> str:
    return request.param


def images(folder: Path, count: int, first: int = 0) -> list[Path]:
    return [save_image(folder / f"{i}.png", i) for i in range(first, first + count)]


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def read(
    samples: dict, cache: str, on_error: str = "skip", classes: tuple[str, ...] = ("ant", "bee"), task: Task = ONE_LABEL
):
    counted = {name: (paths, torch.tensor(labels)) for name, (paths, labels) in samples.items()}
    return read_splits(counted, list(classes), files(8, cache=cache, on_error=on_error), "data.path = 'x'", task=task)


def test_both_caches_give_the_same_images(tmp_path):
    samples = {"train": (images(tmp_path, 6), [0, 1] * 3), "test": (images(tmp_path, 2, 6), [0, 1])}
    kept, left = (read(samples, cache) for cache in ("memory", "none"))
    assert isinstance(left.train, Files) and left.val is None
    for one, other in ((kept.train, left.train), (kept.test, left.test)):
        every = torch.arange(len(one))
        assert one.read(every).equal(other.read(every)) and one.paths == other.paths
        assert list(one.digests()) == list(other.digests()) and one.labels.equal(other.labels)


def test_bad_training_images_are_left_out_counted_and_named(tmp_path, caplog, cache):
    paths = images(tmp_path, 6)
    before = {path: path.read_bytes() for path in paths}
    for path in (paths[1], paths[4]):
        spoil(path)
        before[path] = path.read_bytes()
    raw = read({"train": (paths, [0, 0, 0, 1, 1, 1]), "test": (images(tmp_path, 2, 6), [0, 1])}, cache)
    good = [0, 2, 3, 5]
    assert raw.train.paths == tuple(str(paths[i]) for i in good) and raw.train.labels.tolist() == [0, 0, 1, 1]
    assert raw.train.read(torch.arange(4)).equal(decode([paths[i] for i in good], files(8))[0])
    assert len(raw.test) == 2
    assert caplog.text.count("2 of 6 training images cannot be read and are left out (data.on_error = skip)") == 1
    for path in (paths[1], paths[4]):
        assert caplog.text.count(f"left out: {str(path)!r} (") == 1
    assert {path: path.read_bytes() for path in paths} == before


def test_bad_images_stop_unless_asked_otherwise(tmp_path, caplog, cache):
    paths = images(tmp_path, 8)
    for path in paths[:5]:
        spoil(path)
    with pytest.raises(UserError, match=r"data.path = 'x': 5 of 8 images cannot be read: .*, \.\.\.; repair or delete"):
        read({"train": (paths, [0, 1] * 4)}, cache, "stop")
    for path in paths:
        assert caplog.text.count(f"cannot be read: {str(path)!r} (") == (path in paths[:5])


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_images_are_never_left_out(tmp_path, caplog, cache, split):
    train, held_out = images(tmp_path, 4), images(tmp_path, 3, 4)
    spoil(train[0]), spoil(held_out[1])
    with pytest.raises(UserError) as caught:
        read({"train": (train, [0, 0, 1, 1]), split: (held_out, [0, 1, 1])}, cache)
    assert repr(str(held_out[1])) in str(caught.value) and str(train[0]) not in str(caught.value)
    assert "1 of 7 images cannot be read" in str(caught.value)


def test_a_class_that_loses_all_its_images(tmp_path, cache):
    paths = images(tmp_path, 4)
    spoil(paths[2]), spoil(paths[3])
    with pytest.raises(UserError, match=r"no image of 1 class can be read: 'bee'; repair them"):
        read({"train": (paths, [0, 0, 1, 1])}, cache)


def test_no_image_at_all(tmp_path, cache):
    paths = images(tmp_path, 2)
    spoil(paths[0]), spoil(paths[1])
    with pytest.raises(UserError, match="no training image can be read; repair them"):
        read({"train": (paths, [[0.0, 1.0], [1.0, 0.0]])}, cache)


def test_copies_with_another_label_are_warned_of_once(tmp_path, caplog, cache):
    paths = images(tmp_path, 12)
    paths[11].write_bytes(paths[0].read_bytes())
    paths[1].write_bytes(paths[0].read_bytes())  # in the same class: nothing is wrong with its label
    read({"train": (paths, [0] * 6 + [1] * 6)}, cache)
    assert caplog.text.count("image is a copy of an image with another label") == 1
    assert f"1 image is a copy of an image with another label: {str(paths[11])!r} = {str(paths[0])!r}" in caplog.text
    assert "fewer than" not in caplog.text


def test_copies_among_many_labels(tmp_path, caplog):
    paths = images(tmp_path, 3)
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    read({"train": (paths, [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])}, "memory", task=MANY_LABELS)
    assert f"1 image is a copy of an image with another label: {str(paths[2])!r}" in caplog.text


def test_images_that_cannot_be_read_are_no_copies(tmp_path, caplog):
    paths = images(tmp_path, 4)
    for path in paths[::2]:
        path.write_bytes(b"")
    read({"train": (paths, [0, 0, 1, 1])}, "memory")
    assert "copies" not in caplog.text


def test_small_classes_are_named_once(tmp_path, caplog, cache):
    paths = images(tmp_path, 9)
    spoil(paths[0])
    read({"train": (paths, [0] * 5 + [1] * 4)}, cache)
    assert caplog.text.count("2 classes have fewer than 5 training images: 'ant' (4), 'bee' (4)") == 1


def test_a_file_that_goes_away_later(tmp_path):
    raw = read({"train": (images(tmp_path, 2), [0, 1])}, "none")
    Path(raw.train.paths[1]).unlink()
    with pytest.raises(UserError, match=r"1 of 1 images cannot be read: .*No such file or directory.*put them back"):
        raw.train.read(torch.tensor([1]))
    with pytest.raises(UserError, match="can no longer be read"):
        raw.train.whole(1)


def test_what_pil_warns_of_is_not_shown(tmp_path, recwarn):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 20)
    raw = read({"train": ([path, *images(tmp_path, 1)], [0, 1])}, "none")
    raw.train.whole(0)
    assert not recwarn.list


def test_files_without_permission(tmp_path, monkeypatch, caplog):
    """Simulated: root may read everything."""
    paths = images(tmp_path, 2)
    monkeypatch.setattr("builtins.open", refusing(paths[1]))
    with caplog.at_level(logging.ERROR), pytest.raises(UserError, match=r"1\.png' \(Permission denied\)"):
        read({"train": (paths, [0, 1])}, "memory", "stop")


def refusing(closed: Path, opened=open):
    def refuse(path, *args, **options):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    return refuse
