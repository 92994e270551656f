import io
import logging
import pickle
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data
from engine.data.sources import npz
from engine.data.sources.npz import NpzSettings, load_npz
from engine.tasks import MANY_LABELS
from models.settings import UserError, check

RNG = np.random.default_rng(0)


def archive(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """A right archive of three classes, with keys changed, added or, by None, removed."""
    arrays = {
        "train_images": RNG.integers(0, 256, (30, 8, 6, 3), dtype=np.uint8),
        "train_labels": np.arange(30)[:, None] % 3,
        "test_images": RNG.integers(0, 256, (9, 8, 6, 3), dtype=np.uint8),
        "test_labels": np.arange(9)[:, None] % 3,
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def save(folder: Path, compressed: bool = False, **changes: np.ndarray | None) -> Path:
    path = folder / "set.npz"
    (np.savez_compressed if compressed else np.savez)(path, **archive(**changes))
    return path


def error_of(path: Path | str) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        load_npz(NpzSettings(path=str(path)))
    line = str(caught.value)
    assert "\n" not in line and Path(path).name in line
    return line


@pytest.mark.parametrize("compressed", [False, True])
def test_colour_images_and_column_labels(tmp_path, compressed):
    arrays = archive()
    raw = load_npz(check(NpzSettings, {"name": "npz", "path": str(save(tmp_path, compressed, **arrays))}))
    assert raw.train.images.shape == (30, 3, 8, 6) and raw.test.images.shape == (9, 3, 8, 6)
    assert (raw.train.images.permute(0, 2, 3, 1).numpy() == arrays["train_images"]).all()
    assert raw.train.labels.dtype == torch.int64 and raw.train.labels.tolist() == [i % 3 for i in range(30)]
    assert raw.classes == ["0", "1", "2"] and raw.val is None and raw.mean is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i8", np.uint64])
def test_grey_images_flat_labels_and_names(tmp_path, dtype):
    grey = {f"{split}_images": np.asfortranarray(archive()[f"{split}_images"][..., 0]) for split in ("train", "test")}
    labels = {"train_labels": (np.arange(30) % 3).astype(dtype), "test_labels": (np.arange(9) % 3).astype(dtype)}
    names = ["cat", "dog, large", "Ærø\n"]
    raw = load_npz(NpzSettings(path=str(save(tmp_path, class_names=np.array(names), **grey, **labels))))
    assert raw.train.images.shape == (30, 1, 8, 6) and raw.classes == names
    assert (raw.train.images[:, 0].numpy() == grey["train_images"]).all()


def test_a_validation_split_in_the_archive_is_used(tmp_path):
    val = {"val_images": archive()["test_images"][:5], "val_labels": np.array([0, 1, 2, 0, 1])}
    data = build_data(NpzSettings(path=str(save(tmp_path, **val))), SplitSettings(val=0.4), seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 5, 9)


def test_statistics_are_those_of_the_images_that_train(tmp_path):
    data = build_data(DATASETS["npz"][0](path=str(save(tmp_path))), SplitSettings(val=0.3, part=0.5), seed=0)
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


IMAGES = archive()["train_images"]
LABELS = archive()["train_labels"]
WRONG = {
    "missing labels": ({"test_labels": None}, "test_labels missing"),
    "missing images": ({"train_images": None}, "train_images missing"),
    "half a validation split": ({"val_images": IMAGES}, "val_labels missing"),
    "float images": ({"train_images": IMAGES / 255}, "train_images: float64; save them as uint8"),
    "nan": ({"train_images": np.where(IMAGES > 250, np.nan, IMAGES)}, "values of nan or inf"),
    "wide integers": ({"test_images": IMAGES.astype(np.int64)}, "test_images: int64"),
    "booleans": ({"train_images": IMAGES > 128}, "train_images: bool"),
    "text": ({"train_images": np.array(["a", "b"])}, "train_images: <U1"),
    "objects": ({"train_images": np.array([None, 1])}, "train_images: Python objects, which are not unpickled"),
    "object labels": ({"train_labels": np.array([None, 1])}, "train_labels: Python objects"),
    "flat images": ({"train_images": IMAGES.reshape(30, -1)}, r"train_images: shape \(30, 144\)"),
    "video": ({"train_images": IMAGES[None]}, r"train_images: shape \(1, 30, 8, 6, 3\)"),
    "channels first": ({"train_images": IMAGES.transpose(0, 3, 2, 1).repeat(4, 3)}, "means 32 channels"),
    "no images": ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, r"test_images: shape \(0, 8, 6, 3\)"),
    "other size": ({"test_images": IMAGES[:9, :7]}, r"test_images have \(C, H, W\) = \(3, 7, 6\)"),
    "other channels": ({"test_images": IMAGES[:9, ..., 0]}, r"test_images have \(C, H, W\) = \(1, 8, 6\)"),
    "lengths": ({"train_labels": LABELS[:-1]}, "30 train_images but 29 train_labels"),
    "negative label": ({"train_labels": LABELS - 1}, r"train_labels: -1 at index 0 \(10 such\); labels go from 0"),
    "negative test label": ({"test_labels": np.arange(9) % 3 - 1}, "test_labels: -1 at index 0"),
    "unseen label": ({"test_labels": np.arange(9)}, r"test_labels: 3 at index 3 \(6 such\); there are 3 classes"),
    "over the names": ({"class_names": np.array(["a", "b"])}, "train_labels: 2 at index 2 .* there are 2 classes"),
    "a huge label": ({"train_labels": np.where(LABELS == 2, 10**13, LABELS)}, f"3 different values up to {10**13}; "),
    "labels are ids": ({"train_labels": LABELS * 1000}, "3 different values up to 2000; number the classes"),
    "float labels": ({"train_labels": LABELS / 1}, "train_labels: float64; save them as integers"),
    "text labels": ({"train_labels": LABELS.astype(str)}, "train_labels: <U21"),
    "many labels each": ({"train_labels": np.zeros((30, 14), int)}, r"train_labels: shape \(30, 14\)"),
    "scalar": ({"train_labels": np.array(3)}, r"train_labels: shape \(\)"),
    "a single class": ({"train_labels": LABELS * 0, "test_labels": np.zeros(9, int)}, "1 class; a classifier needs"),
    "names twice": ({"class_names": np.array(["a", "b", "a"])}, "class_names: 'a' occurs more than once"),
    "names as numbers": ({"class_names": np.arange(3)}, r"class_names: int64 of shape \(3,\)"),
    "names as objects": ({"class_names": np.array(["a", None, "b"])}, "class_names: Python objects"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_training(tmp_path, changes, message):
    line = error_of(save(tmp_path, **changes))
    assert re.search(message, line), line


FLAGS = np.array([[i % 2, i % 3 == 0, 0] for i in range(30)])
ONE_HOT = np.eye(3)[np.arange(30) % 3]
SEVERAL = {"train_labels": FLAGS, "test_labels": FLAGS[:9]}


def load(path: Path, **options):
    return load_npz(check(NpzSettings, {"name": "npz", "path": str(path), **options}, "data"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float32, np.float64])
def test_a_column_for_each_label(tmp_path, dtype, caplog):
    val = {"val_images": IMAGES[:6], "val_labels": FLAGS[:6].astype(dtype)}
    raw = load(save(tmp_path, **{key: value.astype(dtype) for key, value in SEVERAL.items()}, **val), labels="many")
    assert raw.task is MANY_LABELS and raw.classes == ["0", "1", "2"]
    assert raw.train.labels.dtype == torch.float32 and raw.train.labels.equal(torch.tensor(FLAGS).float())
    assert raw.val.labels.tolist() == FLAGS[:6].tolist() and raw.test.labels.tolist() == FLAGS[:9].tolist()
    assert "1 class has no training image: '2'" in caplog.text
    named = load(save(tmp_path, **SEVERAL, class_names=np.array(["a", "b", "c"])), labels="many")
    assert named.classes == ["a", "b", "c"]


def test_rows_with_a_single_one_are_classes_if_the_user_says_so(tmp_path):
    path = save(tmp_path, train_labels=ONE_HOT, test_labels=ONE_HOT[:9])
    raw = load(path, labels="one")
    assert raw.train.labels.dtype == torch.int64 and raw.train.labels.tolist() == [i % 3 for i in range(30)]
    assert load(path, labels="many").train.labels.equal(torch.tensor(ONE_HOT).float())
    with pytest.raises(
        UserError, match=r"shape \(30, 3\) with a single 1 in each row: set data.labels=one if each .*=many"
    ):
        load(path)
    assert load(save(tmp_path), labels="one").train.labels.tolist() == [i % 3 for i in range(30)]


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (None, SEVERAL, r"train_labels: shape \(30, 3\) of 0 and 1: set data.labels=many if any number of labels"),
        (None, {"train_labels": FLAGS * 2}, "of other values than 0 and 1; save one class for each image"),
        ("one", SEVERAL, r"train_labels: 0 labels at index 2 \(15 rows have none or several\); set data.labels=many"),
        ("one", {"train_labels": FLAGS - 1}, "of other values than 0 and 1"),
        ("many", {}, r"shape \(30, 1\); data.labels = 'many' needs a column of 0 and 1 .* set data.labels=one"),
        ("many", {"train_labels": LABELS[:, 0]}, r"shape \(30,\); data.labels = 'many' needs"),
        ("many", {"train_labels": FLAGS - 1}, r"-1 at index 0, column 0 \(65 such\); save 1 where a label applies"),
        ("many", {"train_labels": np.where(FLAGS == 1, np.nan, 0)}, r"nan at index 0, column 1 \(25 such\)"),
        ("many", {"train_labels": FLAGS * 0.5}, r"0.5 at index 0, column 1"),
        ("many", {"train_labels": FLAGS.astype(str)}, r"0 at index 0, column 0 \(90 such\)"),
        (
            "many",
            SEVERAL | {"test_labels": FLAGS[:9, :2]},
            r"test_labels: shape \(9, 2\), train_labels \(30, 3\); save",
        ),
        (
            "many",
            SEVERAL | {"class_names": np.array(["a", "b"])},
            r"class_names: shape \(2,\); .* each of the 3 columns",
        ),
        ("many", SEVERAL | {"class_names": np.array(["é", "e\u0301", "c"])}, r"'\\xe9' and 'e\\u0301' differ only in"),
    ],
)
def test_columns_that_are_asked_about_or_wrong(tmp_path, labels, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(save(tmp_path, **changes), labels=labels)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "set.npz", **archive(train_labels=np.array([Bomb()], dtype=object)))
    error_of(tmp_path / "set.npz")
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Bomb()))
    error_of(tmp_path / "bare.npz")
    assert not (tmp_path / "exploded").exists()


def test_a_class_without_training_images_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        raw = load_npz(NpzSettings(path=str(save(tmp_path, class_names=np.array(["a", "b", "c", "empty"])))))
        assert raw.classes == ["a", "b", "c", "empty"] and "1 class has no training image: 'empty'" in caplog.text
        caplog.clear()
        labels = {key: archive()[key] + 1 for key in ("train_labels", "test_labels")}  # counted from one
        assert load_npz(NpzSettings(path=str(save(tmp_path, **labels)))).classes == ["0", "1", "2", "3"]
    assert "'0'" in caplog.text


def test_files_that_are_no_archive(tmp_path):
    assert "not found; give an .npz archive" in error_of(tmp_path / "nothing.npz")
    assert "is a folder" in error_of(tmp_path)
    (tmp_path / "empty.npz").touch()
    assert "not readable as .npz" in error_of(tmp_path / "empty.npz")
    np.save(tmp_path / "single.npy", IMAGES)
    assert "not readable as .npz" in error_of(tmp_path / "single.npy")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "train_images missing" in error_of(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as file:
        file.writestr("train_images", "hello")
    assert "train_images: not readable as .npz (not an array)" in error_of(tmp_path / "foreign.npz")
    assert "not readable as .npz" in error_of(tmp_path / ("long" * 100 + ".npz"))


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_and_damaged_archives(tmp_path, compressed):
    good = save(tmp_path, compressed).read_bytes()
    bad = tmp_path / "bad.npz"
    for length in (0, 10, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:length])
        assert "not readable as .npz" in error_of(bad)
    at = good.index(b"train_images.npy") + 400  # inside the pixels
    bad.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert "not readable as .npz" in error_of(bad)


def test_a_header_that_promises_more_than_memory_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**9, 3)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        file.writestr("train_images.npy", header.getvalue())
    assert "not readable as .npz (train_images: has a header for 3 EB" in error_of(tmp_path / "huge.npz")


def test_a_missing_path_is_named():
    with pytest.raises(UserError, match="data.path: missing"):
        check(NpzSettings, {"name": "npz"}, "data")


def rewritten(path: Path, key: str, content: bytes) -> Path:
    """The archive with another member under a key, compressed."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, old_content in members.items():
            new.writestr(name, content if name == f"{key}.npy" else old_content)
    return path


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    file = io.BytesIO()
    shape = (10**5, 100, 100, 9)  # 9 GB, which the machine may well have
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path = rewritten(save(tmp_path), "train_images", file.getvalue() + bytes(5))
    tracemalloc.start()
    line = error_of(path)
    assert tracemalloc.get_traced_memory()[1] < 10**8
    tracemalloc.stop()
    assert "train_images: has a header for 9 GB and holds 5 bytes" in line


def test_arrays_that_unpack_to_more_than_memory(tmp_path, monkeypatch):
    images = np.zeros((3000, 30, 30, 1), np.uint8)
    path = save(tmp_path, compressed=True, train_images=images, train_labels=np.arange(3000) % 3)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(npz, "available_memory", lambda: 2_000_000)
    line = error_of(path)
    assert "its arrays take 2.7" in line and "MB of memory, 2 MB are free; use a machine with more" in line


def test_one_split_at_most_is_in_memory_twice(tmp_path):
    """Images are brought into another order, which needs a copy."""
    size, number = 30 * 30 * 3, 3000
    arrays = {f"{split}_images": np.zeros((number, 30, 30, 3), np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.arange(number) % 3 for split in ("train", "val", "test")}
    path = save(tmp_path, compressed=True, **arrays)
    del arrays
    tracemalloc.start()
    load_npz(NpzSettings(path=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * size * number


def test_other_members_are_not_looked_at(tmp_path):
    path = save(tmp_path)
    with zipfile.ZipFile(path, "a") as more:
        more.writestr("notes.npy", b"not an array")
        more.writestr("readme.txt", b"x")
    assert load_npz(NpzSettings(path=str(path))).train.images.shape == (30, 3, 8, 6)
