"""What a tracker writes, read back as TensorBoard and other programs read it."""

import io
import json
import math
import os
import resource
import time
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from engine.figures.gallery import wrong_pictures_figure
from engine.runs.tracking import Tracker
from models.settings import UserError


def rows(folder):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def board(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def points(folder, tag):
    return [(event.step, event.value) for event in board(folder).Scalars(tag)]


def train(tracker, start, end, every=2):
    """A run that logs after each second step and, with "val", after each sixth."""
    for step in range(start + 1, end + 1):
        if step % every == 0:
            tracker.scalars(step, {"train/loss": 1 / step, "tokens": step})
        if step % 6 == 0:
            tracker.scalars(step, {"val/top1": step / 100})


def test_scalars_go_to_both(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars(0, {"a": 0.1, "tokens": 65})
        assert rows(tmp_path) == [{"step": 0, "a": 0.1, "tokens": 65}], "readable while the run goes on"
        tracker.scalars(5, {"a": torch.tensor(0.5), "b": np.float32(2.5)})
    assert rows(tmp_path)[1] == {"step": 5, "a": 0.5, "b": 2.5}
    assert points(tmp_path, "training/a") == [(0, pytest.approx(0.1)), (5, 0.5)]
    assert points(tmp_path, "training/tokens") == [(0, 65)]


def test_nan_and_inf_are_null_in_json_and_themselves_in_tensorboard(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars(1, {"a": math.nan, "b": torch.tensor(-math.inf)})
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None}]
    assert math.isnan(points(tmp_path, "training/a")[0][1])
    assert points(tmp_path, "training/b") == [(1, -math.inf)]


@pytest.mark.parametrize("torn", [b"", b'{"step": 13, "train/l', b"\0\0\0\n", b"7\n"])
def test_a_resumed_run_leaves_what_an_uninterrupted_one_does(tmp_path, torn):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with Tracker(whole) as tracker:
        train(tracker, 0, 20)

    with Tracker(broken) as tracker:
        train(tracker, 0, 8)
        lines = tracker.flush()  # the checkpoint of step 8
        train(tracker, 8, 12)
        tracker.flush()
    with open(broken / "metrics.jsonl", "ab") as file:
        file.write(torn)
    (events,) = broken.glob("events.*")
    os.truncate(events, events.stat().st_size - len(torn))
    with Tracker(broken, resume_step=8, resume_lines=lines) as tracker:
        train(tracker, 8, 20)

    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for tag in ("loss/train", "metrics/val_top1"):
        assert points(broken, tag) == points(whole, tag)


def test_lines_of_the_checkpoints_own_step_that_came_after_it_are_cut(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.scalars(6, {"train/loss": 1.0})
        lines = tracker.flush()  # a checkpoint at the last step of an epoch, before its validation
        tracker.scalars(6, {"val/top1": 0.5})
    with Tracker(tmp_path, 6, lines) as tracker:
        tracker.scalars(6, {"val/top1": 0.5})
    assert rows(tmp_path) == [{"step": 6, "train/loss": 1.0}, {"step": 6, "val/top1": 0.5}]
    with Tracker(tmp_path, 6):
        pass
    assert len(rows(tmp_path)) == 2, "without a count the step decides"


def test_without_a_checkpoint_the_files_start_anew(tmp_path):
    with Tracker(tmp_path) as tracker:
        train(tracker, 0, 20)
    with Tracker(tmp_path) as tracker:
        train(tracker, 0, 6)
    assert len(rows(tmp_path)) == 4
    assert [step for step, _ in points(tmp_path, "loss/train")] == [2, 4, 6]


def test_a_resumed_run_whose_metrics_are_gone(tmp_path):
    with Tracker(tmp_path, 8, 4) as tracker:
        train(tracker, 8, 10)
    assert [row["step"] for row in rows(tmp_path)] == [10]


def test_a_text_is_a_card(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.text(0, "run", "# a **run**, 猫")
    (event,) = board(tmp_path).Tensors("run")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (0, "# a **run**, 猫")
    assert board(tmp_path).summary_metadata["run"].plugin_data.plugin_name == "text"
    assert rows(tmp_path) == []


def test_hparams_are_one_entry_in_the_same_run(tmp_path):
    settings = {"name": "a", "train": {"lr": 1e-3, "betas": [0.9, 0.999], "clip_norm": None}, "model": {"r": 8}}
    with Tracker(tmp_path) as tracker:
        tracker.scalars(1, {"train/loss": 1.0})
        tracker.hparams(2, {"Accuracy, %": 50.5, "Model": "vit"}, settings)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []

    content = board(tmp_path).PluginTagToContent("hparams")
    assert set(content) == {SESSION_START_INFO_TAG, SESSION_END_INFO_TAG}
    start = HParamsPluginData.FromString(content[SESSION_START_INFO_TAG]).session_start_info.hparams
    assert start["name"].string_value == "a"
    assert start["train.lr"].number_value == 1e-3
    assert start["train.betas"].string_value == "[0.9, 0.999]"
    assert start["train.clip_norm"].string_value == "null"
    assert start["model.r"].number_value == 8
    assert start["Accuracy, %"].number_value == 50.5 and start["Model"].string_value == "vit"
    assert board(tmp_path).Tags()["scalars"] == ["loss/train"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (16, 3, 32, 32), (1, 4, 9, 7), (0, 3, 8, 8)])
def test_wrong_pictures_are_drawn_whatever_they_are_called(tmp_path, shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    names = ["$cat_{$", "a very long name of a class\nin two lines", "1", r"\alpha", "猫"] * 4
    figure = wrong_pictures_figure(images, names, names[1:], [0.99] * len(images))
    (axes,) = figure.axes
    assert len(axes.images) == len(images)
    with Tracker(tmp_path) as tracker:
        tracker.figure(3, "val/wrong", figure)
    (event,) = board(tmp_path).Images("val/wrong")
    assert event.step == 3
    pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert pixels.shape[:2] == (event.height, event.width) and pixels.std() > 0


def test_the_pictures_pixels_are_the_images(tmp_path):
    colour = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    figure = wrong_pictures_figure(colour, ["a"], ["b"], [0.5])
    (axes,) = figure.axes
    assert (axes.images[0].get_array() == colour[0].permute(1, 2, 0).numpy()).all()
    assert [text.get_text() for text in axes.texts] == ["a\nas b 50 %"]


@pytest.mark.parametrize("height, width", [(4, 4), (9, 3), (2, 7)])
def test_pictures_keep_their_proportions_and_lie_beside_each_other(height, width):
    figure = wrong_pictures_figure(
        torch.zeros(5, 3, height, width, dtype=torch.uint8), list("abcde"), "b" * 5, [1.0] * 5
    )
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, figure.get_figwidth()) and axes.get_ylim() == (figure.get_figheight(), 0), "inches"
    boxes = [image.get_extent() for image in axes.images]
    for left, right, bottom, top in boxes:
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
        assert 0 <= left < right <= figure.get_figwidth() and 0 <= top < bottom <= figure.get_figheight()
    assert all(
        one[1] <= other[0] or other[1] <= one[0] or one[2] <= other[3] or other[2] <= one[3]
        for one, other in combinations(boxes, 2)
    )


@pytest.mark.filterwarnings("error")  # a traceback from a thread would be one
@pytest.mark.parametrize("room", [0, 2000])
def test_a_full_disk_is_one_error(tmp_path, room):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = Tracker(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written, file too large; free"), tracker:
            for step in range(1000):
                tracker.scalars(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_clock_that_was_set_back_changes_nothing(tmp_path, monkeypatch):
    with Tracker(tmp_path) as tracker:
        train(tracker, 0, 12)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    with Tracker(tmp_path, resume_step=8) as tracker:
        train(tracker, 8, 20)
    assert [step for step, _ in points(tmp_path, "loss/train")] == list(range(2, 21, 2))


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="its folder does not exist"):
        Tracker(tmp_path / "gone")
    assert not os.path.exists(tmp_path / "gone")
