"""The picture of what was merged, from photographs alone and by a run's model; and the errors."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from engine.cli import cli
from engine.data.loading.inputs import read_images, reading_settings
from engine.data.loading.loader import Normalise
from engine.figures import drawing
from engine.figures.merge_drawing import painted
from engine.figures.photographs import path_of
from engine.runs.restore import load_run
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from models.merging import MERGERS
from models.merging.wrapping import trace
from models.settings import check
from tests.engine.conftest import TINY
from tests.tools.colours import colour_run
from tests.tools.runs import TIMM, folder_run
from tools import picture as tool

RESNET = {"name": "timm", "arch": "test_resnet", "img_size": 32}
PARALLEL = {"name": "timm", "arch": "vit_pwee_patch16_reg1_gap_256", "img_size": 32, "options": {"depth": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on grey images of 8 x 8 pixels, 4 x 4 patches, of which 6 are merged away."""
    folder = tmp_path_factory.mktemp("tiny")
    run_experiment(check(RunSettings, {**TINY, "train": {"epochs": 1, "batch_size": 128}}), folder)
    return folder


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path):
    """Exit code and stderr of the tool, and the figure that it drew, if any; it writes out.png into `tmp_path`."""
    drawn = []
    save = drawing.save_figure
    monkeypatch.setattr(drawing, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path))

    def call(*args: str):
        monkeypatch.setattr(sys, "argv", ["picture.py", "--out", str(tmp_path / "out.png"), *args])
        code = cli(tool.main)
        out, err = capsys.readouterr()
        assert out == ""
        return code, err, drawn[-1] if drawn else None

    return call


def pixels(run, name: str, channels: int) -> torch.Tensor:
    """A photograph, uint8 (1, channels, size, size), as the run reads files."""
    reading = reading_settings(run.settings.data, run.settings.model)
    return read_images([path_of(name)], reading, channels)[0]


def titles(figure) -> dict[str, str]:
    return dict(axes.get_title().split("\n") for axes in figure.axes if axes.get_title())


def test_without_a_model_every_untrained_method_has_a_column(tell, tmp_path):
    Image.effect_noise((50, 70), 60).save(tmp_path / "mine.jpg")
    code, err, figure = tell("--images", "china", str(tmp_path / "mine.jpg"), "--size", "32", "--patch", "8")
    assert (code, err) == (0, "")
    assert list(titles(figure)) == ["photograph", *(n for n in MERGERS if n != "none" and not MERGERS[n].learns)]
    assert set(titles(figure).values()) == {"16 patches", "4 tokens"}
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["china", "mine"]
    caption = " ".join(figure.get_supxlabel().split())
    assert "No model, nothing trained" in caption and "used by kmedoids, topk, ats, diffrate and mctf is" in caption
    assert caption.endswith("Photographs, made square: china by danielbuechele (Flickr), CC BY 2.0.")
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG" and image.size[0] == pytest.approx(130 * figure.get_figwidth(), abs=2)
        assert len(image.convert("RGB").getcolors(2**24)) > 500


def test_chosen_methods_and_share(tell):
    code, _, figure = tell("--images", "flower", "--methods", "tome", "none", "--keep", "0.5", "--size", "64")
    assert code == 0 and titles(figure) == {"photograph": "16 patches", "tome": "8 tokens", "none": "16 tokens"}
    assert "attention" not in figure.get_supxlabel()


def test_a_runs_model_merges(run, tell):
    code, err, figure = tell("--run", str(run), "--images", "grace_hopper")
    assert (code, err) == (0, "") and titles(figure) == {"photograph": "16 patches", "tome": "10 tokens"}
    assert "Model: run tiny, hybrid on digits, merging as in training." in " ".join(figure.get_supxlabel().split())

    loaded = load_run(run)
    grey = pixels(loaded, "grace_hopper", 1)
    with torch.no_grad():
        _, tokens = loaded.model.eval().forward_features(Normalise(loaded.data.mean, loaded.data.std)(grey))
    seen = grey[0].expand(3, -1, -1)
    photograph, merged = (torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes)
    assert photograph.equal(seen.permute(1, 2, 0)), "the photograph is drawn as the model sees it: grey"
    torch.testing.assert_close(merged, painted(seen, tokens.index[0, 1:].view(4, 4)))


def test_the_same_weights_with_other_methods(run, tell):
    code, err, figure = tell("--images", "china", "--run", str(run), "--methods", "pool", "topk", "merge.r=6")
    assert (code, err) == (0, "")
    assert titles(figure) == {"photograph": "16 patches", "pool": "4 tokens", "topk": "4 tokens"}
    assert len(figure.axes) == 3
    code, err, figure = tell("--run", str(run), "--images", "china", "merge.r=2")
    assert (code, err) == (0, "") and titles(figure) == {"photograph": "16 patches", "tome": "12 tokens"}
    assert "merging otherwise than in training" in " ".join(figure.get_supxlabel().split())


def test_a_wrapped_model_merges(tell, tmp_path):
    folder = folder_run(tmp_path, {**TIMM, "img_size": 64})
    change = ["merge.method=tome", "merge.r=[5, 2]"]
    code, err, figure = tell("--run", str(folder), "--images", "china", *change)
    assert (code, err) == (0, "") and titles(figure) == {"photograph": "16 patches", "tome": "9 tokens"}
    assert "Model: run run, timm:test_vit on folder, merging otherwise" in " ".join(figure.get_supxlabel().split())

    loaded = load_run(folder, change)
    images = pixels(loaded, "china", 3)
    with torch.no_grad():
        _, tokens = trace(loaded.model.eval(), Normalise(loaded.data.mean, loaded.data.std)(images))
    expected = painted(images[0], tokens.index[0, 1:].view(4, 4))
    torch.testing.assert_close(torch.as_tensor(figure.axes[1].images[0].get_array()), expected)

    code, err, figure = tell("--run", str(folder), "--images", "china", "--methods", "tome", "random", "merge.r=3")
    assert code == 0 and titles(figure) == {"photograph": "16 patches", "tome": "10 tokens", "random": "10 tokens"}
    code, err, _ = tell("--run", str(folder), "--images", "china")
    said = "model.name = 'timm:test_vit': run run merges no tokens; add merge.method=tome merge.r=8"
    assert (code, err) == (2, f"error: {said}\n")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"name": "lenet5", "img_size": 32}, "LeNet5 is not a model that"),
        (RESNET, "ResNet convolves: there are no tokens to merge"),
        (PARALLEL, "computes attention and MLP side by side"),
    ],
)
def test_a_model_that_cannot_merge_is_not_told_to(tell, tmp_path, model, why):
    """Models of timm have a section `merge` whether they can merge or not."""
    folder = colour_run(tmp_path / "run", model=model)
    code, err, _ = tell("--run", str(folder), "--images", "china")
    assert code == 2 and err.startswith("error: model.name = ") and err.count("\n") == 1
    assert "run run merges no tokens and cannot (" in err and why in err
    assert err.endswith("give a run of such a model, or of vit, hybrid or conformer\n")
    assert "merge.method" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--images", "nothing.jpg"], "nothing.jpg: no such image file"),
        (["--images", ""], "--images : no such image file or built-in photograph"),
        (["--images", "chnia"], "did you mean china?"),
        (["--images", __file__], "cannot be read (not JPEG, PNG"),
        (["--images", "china", "--methods", "tme"], "--methods tme: unknown; did you mean tome or pitome?"),
        (
            ["--images", "china", "--methods", "dtem"],
            "--methods dtem: has to be trained; give the --run that trained it",
        ),
        (["--images", "china", "--keep", "0"], "--keep 0: must be greater than 0 and at most 1"),
        (["--images", "china", "--keep", "1.5"], "--keep 1.5: "),
        (["--images", "china", "--keep", "nan"], "--keep nan: "),
        (["--images", "china", "--size", "225"], "--size 225: not divisible by --patch 16; use 224 or 240"),
        (["--images", "china", "--size", "0"], "--size 0: must be from 1 to 4096"),
        (["--images", "china", "--patch", "1"], "--patch 1: makes 50176 patches"),
        (["--images", "china", "merge.r=4"], "merge.r=4: changes a run's settings; give --run DIR"),
        (["--images", "china", "--run", "no/run"], "no/run: not a run folder"),
        (["--images", "china", "--run", "no/run", "--keep", "0.5"], "--keep: not with --run, which has its own"),
        (["--images", "china", "--size", "32", "--out", "no/folder/out.png"], "no/folder/out.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line(tell, args, words, tmp_path):
    code, err, _ = tell(*args)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not (tmp_path / "out.png").exists()


def test_images_are_asked_for(tell, capsys):
    with pytest.raises(SystemExit, match="2"):
        tell("--images", "merge.r=4")
    assert "give --images at least one file" in capsys.readouterr().err
