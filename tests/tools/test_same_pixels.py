"""Pictures, predictions and evaluation show a model the same pixels, whatever the run's settings of image files are."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from engine.data.loading.loader import Normalise, eval_batches
from engine.figures.merge_picture import picture_of_run
from engine.runs.restore import load_run
from engine.submit.ensemble import gather
from engine.submit.predict import predict
from tests.tools.colours import VIT, colour_run

READINGS = [
    {},
    {"fit": "squash"},
    {"crop_pct": 0.5},
    {"background": "#204060"},
    {"fit": "squash", "background": "black"},
    {"crop_pct": 0.8, "background": "red", "cache": "none"},
]
MERGE = ["merge.method=tome", "merge.r=2"]


@pytest.fixture
def seen(monkeypatch):
    """Every batch that is normalised for a model, uint8 as it goes in and float32 as it comes out."""
    batches = []
    normalise = Normalise.__call__

    def record(self, images):
        batches.append((images.clone(), normalise(self, images)))
        return batches[-1][1].clone()

    monkeypatch.setattr(Normalise, "__call__", record)
    return batches


def photograph(path, seed: int):
    """A file with a gradient across, noise, and a transparent corner: crop, squash and background each show."""
    noise = torch.randint(0, 60, (20, 31, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    noise[..., 0] += torch.arange(0, 186, 6, dtype=torch.uint8)
    noise[..., 3] = 255
    noise[:9, 8:20, 3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.numpy()).save(path)
    return path


@pytest.mark.parametrize("reading", READINGS)
def test_picture_predict_and_evaluation_see_the_same(tmp_path, seen, reading):
    paths = [photograph(tmp_path / "data" / "test" / "12"[i % 2] / f"{i}.png", i) for i in range(2)]
    for i in range(2, 6):
        photograph(tmp_path / "data" / "train" / "12"[i % 2] / f"{i}.png", i)
    data = {"name": "folder", "path": str(tmp_path / "data"), "size": 8, **reading}
    folder = colour_run(tmp_path / "run", {"1": (200, 0, 0), "2": (0, 0, 200)}, data=data, split={"val": 0.0})
    seen.clear()  # what the run was made with
    picture_of_run(folder, list(map(str, paths)), overrides=MERGE)
    drawn = [torch.cat(kind) for kind in zip(*seen)]
    seen.clear()
    predict(gather([folder]), paths)
    predicted = seen.pop()
    run = load_run(folder)
    (evaluated, _) = next(eval_batches(run.data.test, 2, run.data.mean, run.data.std, run.data.resize))
    assert drawn[0].shape == (2, 3, 8, 8) and drawn[0].equal(predicted[0]) and drawn[0].equal(seen[-1][0])
    assert drawn[1].equal(predicted[1]) and drawn[1].equal(evaluated)
    plain = colour_run(tmp_path / "plain", data={"name": "folder", "path": "no", "size": 8})
    picture_of_run(plain, list(map(str, paths)), overrides=MERGE)
    assert torch.cat([pixels for pixels, _ in seen[-2:]]).equal(drawn[0]) == (not reading)


@pytest.mark.parametrize(
    ("data", "channels"),
    [({"name": "digits"}, 1), ({"name": "npz", "path": "no"}, 3), ({"name": "npz", "path": "no"}, 1)],
)
def test_runs_on_arrays_and_grey_models(tmp_path, seen, data, channels):
    """The square in the middle, at the model's size; grey as predictions make it, in the picture as well."""
    colours = {"1": (200, 0, 0), "2": (0, 0, 200)}
    folder = colour_run(tmp_path / "run", colours, {**VIT, "in_chans": channels}, data=data)
    paths = [photograph(tmp_path / f"{i}.png", i) for i in range(2)]
    seen.clear()
    figure = picture_of_run(folder, list(map(str, paths)), overrides=MERGE)
    drawn = [torch.cat(kind) for kind in zip(*seen)]
    seen.clear()
    predict(gather([folder]), paths)
    assert drawn[0].shape == (2, channels, 8, 8) and drawn[0].equal(seen[0][0]) and drawn[1].equal(seen[0][1])
    shown = torch.stack([torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes[::2]])
    assert shown.permute(0, 3, 1, 2).equal(drawn[0].expand(-1, 3, -1, -1))
