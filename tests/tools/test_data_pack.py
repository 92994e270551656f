"""tools/data.py pack: what it writes and says, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from engine.cli import cli
from tests.engine.data.sources.test_folder import fill
from tools import data


@pytest.fixture
def tell(monkeypatch, capsys):
    """Runs the tool; returns its exit code, what it printed, and its errors."""

    def tell(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
        code = cli(data.main)
        return (code, *capsys.readouterr())

    return tell


def test_a_folder_is_packed_and_checked(tmp_path, tell):
    fill(tmp_path / "set" / "train", {"ant": 5, "bee": 6})
    fill(tmp_path / "set" / "test", {"ant": 1, "bee": 2}, 50)
    code, said, errors = tell("pack", tmp_path / "set", "--out", tmp_path / "packed")
    assert (code, errors) == (0, "")
    assert said.startswith("train   11 images in 1 shard, 0.0 MB\ntest    3 images in 1 shard")
    assert said.endswith(f"train on them: data.name=shards data.path={tmp_path / 'packed'}\n")
    code, said, _ = tell("check", tmp_path / "packed")
    assert code == 0 and "2 classes; 11 images to train on, 3 images to test on" in said
    assert said.endswith("training can start: data.name=shards\n")
    (tmp_path / "packed" / "test-000000.tar").write_bytes(b"")
    code, said, errors = tell("check", tmp_path / "packed")
    assert code == 2 and errors.endswith("training cannot start: 1 shard is damaged; see above\n")
    assert "test-000000.tar' (empty file)" in said


def test_arrays_are_packed_by_the_settings_of_training(tmp_path, tell):
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    arguments = (f"data.path={tmp_path / 'set.npz'}", "--out", tmp_path / "packed")
    code, said, errors = tell("pack", "data.name=npz", *arguments)
    assert code == 0 and said.startswith("train   8 images in 1 shard"), errors


def test_what_it_refuses(tmp_path, tell):
    (tmp_path / "set").mkdir()
    for arguments, message in (
        (("a", "b"), "pack: give one PATH, or data.name= one of digits, "),
        (("data.name=foldr",), "pack: give one PATH, or data.name= one of digits, "),
        (("data.name=digits", "train.lr=1"), "train: not a setting of the data"),
        (("data.name=digits", "--megabytes", "0"), "--megabytes 0: must be at least 1"),
        ((tmp_path / "set",), "no class folders in it"),
    ):
        code, _, errors = tell("pack", *arguments, "--out", tmp_path / "packed")
        assert code == 2 and message in errors and errors.count("\n") == 1, errors
