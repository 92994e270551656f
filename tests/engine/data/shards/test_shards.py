"""Images in shards: those that webdataset wrote, those that we pack, and what is wrong with damaged ones."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from engine.data import SplitSettings, build_data, load_raw
from engine.data.check.preflight import check_source, source_settings
from engine.data.images import open_rgb
from engine.data.shards import packing as packing_module
from engine.data.shards.members import open_member, read_shard
from engine.data.shards.packing import pack
from engine.data.sources.folder import FolderSettings, find_folder
from engine.data.sources.npz import NpzSettings, load_npz
from engine.data.sources.shards import ShardSettings, find_in_shards
from engine.data.sources.table import CsvSettings, find_csv
from models.settings import UserError
from tests.engine.data.conftest import files, random_arrays
from tests.engine.data.sources.test_folder import fill


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG" if seed % 2 else "JPEG")
    return file.getvalue()


def write(folder: Path, counts: dict[str, int], label=lambda i: {"cls": i % 2}) -> Path:
    """Shards of webdataset's writer, by their names, with so many samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for name, count in counts.items():
        with webdataset.TarWriter(str(folder / name)) as tar:
            for _ in range(count):
                extension = "png" if number % 2 else "jpg"
                tar.write({"__key__": f"some.x/{number:04d}", extension: picture(number), **label(number)})
                number += 1
    return folder


@pytest.fixture
def shards(tmp_path) -> Path:
    return write(tmp_path / "set", {"train-0000.tar": 12, "train-0001.tar": 9, "val-0000.tar": 4, "test-0000.tar": 6})


def found(path: Path | str, **options):
    return find_in_shards(ShardSettings(path=str(path), size=8, **options))


def problems(path: Path | str, **options) -> str:
    """The lines of all errors."""
    return "\n".join(finding.line() for finding in found(path, **options).findings if finding.error)


def test_shards_of_webdataset(tmp_path, monkeypatch):
    """A sample's members are equal up to the first dot of their names, whatever the folder is called."""
    source = found(write(tmp_path / "set", {"a-train-00.tar": 5, "a-train-01.tar": 6, "a-validation-00.tar": 4}))
    assert not source.findings and source.classes == ["0", "1"]
    assert {split: labels.tolist() for split, (_, labels) in source.samples.items()} == {
        "train": [i % 2 for i in range(11)],
        "val": [1, 0, 1, 0],
    }
    seeds = [*range(11)]
    for seed, path in zip(seeds, source.samples["train"][0], strict=True):
        assert np.array_equal(open_rgb(path, files(8)), Image.open(io.BytesIO(picture(seed))).convert("RGB"))
    assert path == tmp_path / "set" / "a-train-01.tar" / "some.x" / "0010.jpg"


def test_a_run_on_shards_is_a_run_on_the_folder(tmp_path):
    """The same pixels, labels and order: every draw, and so every epoch, is that of the folder."""
    fill(tmp_path / "set" / "train", {"ant": 9, "bee": 7})
    fill(tmp_path / "set" / "test", {"ant": 2, "bee": 3}, 50)
    folder = FolderSettings(path=str(tmp_path / "set"), size=8)
    index = pack(find_folder(folder), tmp_path / "packed", shard_bytes=2000)
    assert len([shard for shard in index.shards if shard.split == "train"]) > 2
    report = check_source(source_settings(str(tmp_path / "packed")))  # the kind is guessed
    assert not report.findings and report.counts == {"train": [9, 7], "test": [2, 3]}
    for cache in ("memory", "none"):
        of_folder, of_shards = (
            build_data(settings.model_copy(update={"cache": cache}), SplitSettings(val=0.25), 0)
            for settings in (folder, ShardSettings(path=str(tmp_path / "packed"), size=8))
        )
        assert of_folder.fingerprint() == of_shards.fingerprint()
        index = torch.tensor([5, 0, 3])
        assert torch.equal(of_folder.train.read(index), of_shards.train.read(index))
    assert of_shards.train.paths[0].startswith(str(tmp_path / "packed" / "train-000000.tar" / "0000000-0.png"))


def test_webdataset_reads_what_we_pack(tmp_path):
    arrays = random_arrays(30, size=6, classes=3)
    raw = load_npz(saved(tmp_path / "set.npz", arrays))
    pack(raw, tmp_path / "packed", shard_bytes=1000)
    urls = sorted(map(str, (tmp_path / "packed").glob("train-*.tar")))
    assert len(urls) > 1
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert [label for _, label in read] == arrays.labels.tolist()
    assert np.array_equal(np.stack([image for image, _ in read]).transpose(0, 3, 1, 2), arrays.images.numpy())
    again = load_raw(ShardSettings(path=str(tmp_path / "packed"), size=6))
    assert torch.equal(again.train.images, arrays.images) and again.classes == raw.classes


def saved(file: Path, arrays) -> NpzSettings:
    images, labels = arrays.images.numpy().transpose(0, 2, 3, 1), arrays.labels.numpy()
    np.savez(file, train_images=images, train_labels=labels, test_images=images[:4], test_labels=labels[:4])
    return NpzSettings(path=str(file))


def test_many_labels(tmp_path):
    fill(tmp_path / "set", {"x": 6})
    rows = "".join(f"x/{i}.png,{'b;a' if i % 2 else 'a'}\n" for i in range(6))
    (tmp_path / "set" / "table.csv").write_text(f"path,labels\n{rows}")
    source = find_csv(CsvSettings(path=str(tmp_path / "set" / "table.csv"), labels="many", size=8))
    pack(source, tmp_path / "packed", shard_bytes=10**6)
    packed = found(tmp_path / "packed", labels="many")
    assert packed.classes == ["a", "b"] and torch.equal(packed.samples["train"][1], source.samples["train"][1])
    with pytest.raises(UserError, match="data.labels = 'one': packed with many; set it to that"):
        found(tmp_path / "packed")


def test_labels_in_json(tmp_path):
    names = ["cat", "dog"]
    path = write(tmp_path / "set", {"x.tar": 6}, lambda i: {"json": {"label": names[i % 2], "weight": 1}})
    assert found(path).classes == names and found(path).samples["train"][1].tolist() == [0, 1] * 3
    with pytest.raises(UserError, match="no 'kind' in it, only 'label', 'weight'"):
        found(path, label_key="kind")
    path = write(tmp_path / "other", {"x.tar": 6}, lambda i: {"class.txt": names[i % 2]})
    assert found(path, label="class.txt").classes == names


def test_shards_may_lie_in_folders_or_be_named_by_a_pattern(tmp_path):
    write(tmp_path / "set" / "train", {"000.tar": 4, "001.tar": 4})
    write(tmp_path / "set" / "Test_set", {"000.tar": 2})
    assert {split: len(paths) for split, (paths, _) in found(tmp_path / "set").samples.items()} == {
        "train": 8,
        "test": 2,
    }
    pattern = f"{tmp_path}/set/train/{{000..001}}.tar"
    assert len(found(pattern).samples["train"][0]) == 8
    assert source_settings(pattern).name == "shards"
    assert problems(f"{tmp_path}/set/train/{{000..002}}.tar").startswith(
        f"1 shard missing: '{tmp_path}/set/train/002.tar'; copy or pack"
    )


def test_names_of_members_are_kept(tmp_path):
    """Extensions in capitals, and paths from the root, as `tar -P` writes them."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number, name in enumerate(["a.PNG", "a.CLS", "/b/c.JPEG", "/b/c.cls", "d.png", "d.cls"]):
            content = picture(1) if number % 2 == 0 else str(number // 2).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = found(tmp_path)
    [(paths, labels)] = source.samples.values()
    assert [path.name for path in paths] == ["a.PNG", "c.JPEG", "d.png"] and labels.tolist() == [0, 1, 2]
    for path in paths:
        with open_member(path) as file:
            assert file.read() == picture(1)


def test_names_with_numbers_that_count_nothing(tmp_path):
    """Of ImageNet's classes, for example, most of the numbers in between are missing."""
    assert not found(write(tmp_path, {"n01440764.tar": 2, "n15075141.tar": 2})).findings


def test_what_is_no_folder_of_shards(tmp_path, shards):
    for path, message in (
        (tmp_path / "none", "not found; expected PATH/train-000000.tar"),
        (tmp_path, "no .tar files in it; expected"),
        (shards / "none-{00..03}.tar", "none of 4 files found, such as"),
        (shards / "none-{00..03.tar", "not a pattern; write it as in"),
    ):
        with pytest.raises(UserError, match=message):
            found(path)
    shutil.copy(shards / "train-0000.tar", shards / "more.tar")
    with pytest.raises(UserError, match="'more.tar' does not say whether it is train, val or test, as others do"):
        found(shards)
    (shards / "more.tar").unlink()
    for shard in shards.glob("train*"):
        shard.unlink()
    with pytest.raises(UserError, match="no training shards, only test and val"):
        found(shards)


def test_damage(shards):
    train = shards / "train-0000.tar"
    whole, members = train.read_bytes(), read_shard(train).members
    last = members["some.x/0011.png"]
    train.write_bytes(whole[: last.offset + last.size // 2])
    assert "1 shard is damaged: " in problems(shards) and "(cut off in member 'some.x/" in problems(shards)
    train.write_bytes(b"")
    assert "train-0000.tar' (empty file)" in problems(shards)
    train.write_bytes(b"hello" * 1000)
    assert "train-0000.tar' (not a tar file, or damaged" in problems(shards)
    blocks = -(-(last.offset + last.size) // 512) * 512
    train.write_bytes(whole[:blocks])
    assert "cut off: it has no end mark" in problems(shards)
    train.write_bytes(whole)
    assert problems(shards) == ""
    (shards / "train-0003.tar").write_bytes(whole)
    assert "1 shard missing: " in problems(shards) and "train-0002.tar" in problems(shards)


def test_samples_that_are_no_image_and_label(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in {
            "0.png": picture(1),
            "0.cls": b"0",
            "1.png": picture(3),
            "2.png": picture(5),
            "2.jpg": picture(4),
            "2.cls": b"1",
            "3.jpg": b"no image",
            "3.cls": b"1",
            "4.txt": b"a caption",
            "5.jpg": picture(6),
            "5.cls": b"",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    said = problems(tmp_path)
    assert f"1 image has no label beside it: '{tmp_path}/x.tar/1.png'; data.label says which" in said
    assert "2 samples are not an image and its label: " in said
    assert "2.png' (several images in a sample: png, jpg)" in said and "'' is neither a number nor a name" in said
    report = check_source(source_settings(str(tmp_path)))
    assert any("3.jpg' (not JPEG, PNG" in item for finding in report.errors for item in finding.items)


def test_labels_that_are_no_class(tmp_path):
    mixed = write(tmp_path / "mixed", {"x.tar": 4}, lambda i: {"cls": str(i) if i else "ant"})
    with pytest.raises(UserError, match="some labels are numbers, others are names"):
        found(mixed)
    bad = write(tmp_path / "bad", {"train-0.tar": 4, "test-0.tar": 5}, lambda i: {"cls": i % 2 + 2 * (i == 8)})
    with pytest.raises(UserError, match=r"test-0.tar/some.x/0008.jpg: the label 2 is not one of index.json or of the"):
        found(bad)
    one = write(tmp_path / "one", {"x.tar": 4}, lambda i: {"cls": 0})
    assert problems(one) == "a single class, '0'; a classifier needs two or more"
    gap = write(tmp_path / "gap", {"x.tar": 4}, lambda i: {"cls": 2 * (i % 2)})
    [warning] = found(gap).findings
    assert warning.line() == "1 class has no training images: '1'; add shards that have some" and not warning.error


def test_an_interrupted_packing_is_not_trained_on(tmp_path, monkeypatch):
    source = find_folder(FolderSettings(path=str(fill(tmp_path / "set", {"a": 2, "b": 2}))))

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    [(paths, _), *_] = source.samples.values()
    whole = packing_module._of_file
    monkeypatch.setattr(packing_module, "_of_file", lambda path: stop(path) if path == paths[-1] else whole(path))
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "shards", 10**6)
    assert "packing was interrupted" in problems(tmp_path / "shards")


def test_an_index_tells_what_is_missing(tmp_path):
    fill(tmp_path / "set", {"ant": 9, "bee": 7})
    packed = tmp_path / "packed"
    pack(find_folder(FolderSettings(path=str(tmp_path / "set"), size=8)), packed, shard_bytes=2000)
    last = sorted(packed.glob("*.tar"))[-1]
    content = last.read_bytes()
    last.unlink()
    assert problems(packed).startswith(f"1 shard missing: {str(last)!r}; copy")
    last.write_bytes(content + bytes(512))
    assert "1 shard is not as index.json has it: " in problems(packed)
    last.write_bytes(content)
    shutil.copy(last, packed / "train-000099.tar")
    assert "1 shard is not in index.json: " in problems(packed)
    (packed / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json: damaged; delete it"):
        found(packed)
    with pytest.raises(UserError, match="--out .*packed: is not empty; give another folder"):
        pack(find_folder(FolderSettings(path=str(tmp_path / "set"), size=8)), packed, shard_bytes=2000)


def test_a_shard_that_is_gone_while_training(shards):
    data = build_data(ShardSettings(path=str(shards), size=8, cache="none"), SplitSettings(), 0)
    data = pickle.loads(pickle.dumps(data.train))  # as a worker process of another system gets it
    os.truncate(shards / "train-0001.tar", 3000)
    with pytest.raises(UserError, match="train-0001.tar/some.x/.* can no longer be read"):
        data.whole(len(data) - 1)
    with pytest.raises(FileNotFoundError):
        open_member(shards / "train-0000.tar" / "none.jpg")


def test_images_with_other_channels_cannot_be_packed(tmp_path):
    raw = load_npz(saved(tmp_path / "set.npz", random_arrays(12, size=6, channels=4, classes=3)))
    with pytest.raises(UserError, match="images have 4 channels; shards hold image files, which have 1 or 3"):
        pack(raw, tmp_path / "packed", 1000)
