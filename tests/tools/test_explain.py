"""tools/explain.py: what it writes, that it explains what the run predicts, and what it says of mistakes."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.cli import cli
from engine.cost.macs import measure_or_say
from engine.explain.explaining import in_words
from engine.explain.opening import Wanted, opened
from engine.runs.restore import load_model
from models.explain import EXPLAINERS, explain
from tests.tools.runs import folder_run
from tools import explain as tool
from tools import predict as predict_tool

HYBRID = {
    "name": "hybrid",
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "merge": {"method": "tome", "r": 4},
}
CNN = {"name": "cnn", "img_size": 32, "width": 8, "depths": [1, 1]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs on noise: a hybrid that merges 8 of 16 patches, and a CNN."""
    return {
        name: folder_run(tmp_path_factory.mktemp(name), model) for name, model in (("hybrid", HYBRID), ("cnn", CNN))
    }


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*args: object, tool=tool) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
        code = cli(tool.main)
        return code, *capsys.readouterr()

    return run


def test_figures_sheet_and_numbers(runs, tmp_path, call):
    run, out = runs["hybrid"], tmp_path / "out"
    images = [run.parent / "images" / "a" / "0.png", run.parent / "images" / "b" / "1.png"]
    methods = ["gradcam", "rollout", "gradient_rollout"]
    code, said, errors = call("--run", run, "--images", *images, "--out", out, "--method", *methods)
    assert (code, errors) == (0, "")
    figures = {f"{i}_{method}.png" for i in (0, 1) for method in methods}
    assert {path.name for path in out.iterdir()} == figures | {"sheet.png", "explanations.npz"}
    assert "sheet.png: 2 images, 3 explanations of each" in said
    for path in out.glob("*.png"):
        assert min(Image.open(path).size) > 200

    assert call("--run", run, "--images", *images, "--out", tmp_path / "p.csv", tool=predict_tool)[0] == 0
    predicted = [line.split(",")[1] for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    model = load_model(run)
    with np.load(out / "explanations.npz") as arrays:
        assert arrays["images"].tolist() == ["0.png", "1.png"]
        for method in methods:
            assert arrays[method].shape == (2, 4, 4)
            assert arrays[f"{method}_target"].tolist() == predicted
            assert arrays[f"{method}_probabilities"].sum(1) == pytest.approx([1, 1])
        kept = arrays["gradient_rollout"]
    from engine.data.loading.loader import Normalise
    from engine.explain.explaining import read

    pixels = read(model, {path.name: path for path in images})
    again = explain(model.model, Normalise(model.mean, model.std)(pixels), "gradient_rollout").relevance
    torch.testing.assert_close(torch.from_numpy(kept), again.cpu(), rtol=1e-4, atol=1e-7)


def test_two_runs_beside_each_other(runs, tmp_path, call):
    image = runs["cnn"].parent / "images" / "a" / "0.png"
    args = ["--run", runs["hybrid"], "--run", runs["cnn"], "--images", image, "--target", "b"]
    code, _, errors = call(*args, "--out", tmp_path, "merge.r=2")
    assert code == 2 and errors.count("\n") == 1 and "merge" in errors  # the CNN merges nothing
    code, _, errors = call(*args, "--out", tmp_path)
    assert (code, errors) == (0, ""), errors
    with np.load(tmp_path / "explanations.npz") as arrays:  # both runs have the same name: folders tell them apart
        targets = {key: arrays[key].tolist() for key in arrays if key.endswith("_target")}
        shapes = sorted(arrays[key].shape for key in arrays if key.endswith("_gradcam"))
    assert len(targets) == 2 and set(map(str, targets.values())) == {"['b']"}
    assert shapes == [(1, 4, 4), (1, 16, 16)]


def test_merges_are_drawn(runs, tmp_path, call):
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    code, _, errors = call("--run", runs["hybrid"], "--images", image, "--method", "merge", "--out", tmp_path)
    assert (code, errors) == (0, ""), errors
    assert {path.name for path in tmp_path.iterdir()} == {"0_merge.png", "0_merge.gif"}
    assert Image.open(tmp_path / "0_merge.gif").n_frames == 3


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--method", "gradcan"], "error: --method gradcan: unknown; did you mean gradcam"),
        (["--target", "c"], "error: --target c: no such class; "),
        (["--target", "2"], "error: --target 2: no such class; the run has 0 to 1: a, b"),
        (["gradcam.att=map"], "error: gradcam.att: not an option of gradcam; known: at"),
        (["--images", "missing.png"], "error: --images missing.png: not found"),
        (["--run", "nowhere"], "error: nowhere: not a run folder"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, call, args, line):
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    given = {"--run": [runs["hybrid"]], "--images": [image], "--out": [tmp_path / "out"]}
    rest = [argument for key, values in given.items() if key not in args for argument in (key, *values)]
    code, _, errors = call(*rest, *args)
    assert code == 2 and errors.count("\n") == 1 and errors.startswith(line), errors
    assert not (tmp_path / "out").exists()


def test_lime_says_how_well_it_fits(runs, tmp_path, call):
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    args = ["--run", runs["hybrid"], "--images", image, "--method", "lime", "lime.samples=60", "lime.segments=clusters"]
    saved = []
    for out in ("one", "two"):
        code, _, errors = call(*args, "--out", tmp_path / out)
        assert (code, errors) == (0, ""), errors
        with np.load(tmp_path / out / "explanations.npz") as arrays:
            saved.append(arrays["lime"])
    assert np.array_equal(*saved) and len(np.unique(saved[0])) <= 8  # the 8 tokens that are left
    assert in_words({"r2": 0.81, "regions": 8}) == "R² 0.81, regions 8"
    assert in_words({"r2": 0.31}) == "R² 0.31, a poor fit"


def test_a_model_without_attention(runs, tmp_path, call):
    image = runs["cnn"].parent / "images" / "a" / "0.png"
    for method in ("rollout", "merge"):
        code, _, errors = call("--run", runs["cnn"], "--images", image, "--out", tmp_path, "--method", method)
        assert code == 2 and errors.count("\n") == 1 and "attention" in errors, errors


def test_the_most_confident_mistakes(runs, tmp_path, call):
    """Those of the run's own predictions.csv, in their order."""
    run = runs["hybrid"]
    code, said, errors = call("--run", run, "--wrong", "3", "--out", tmp_path)
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = sorted(
        (row for row in rows if row["label"] != row["predicted"]), key=lambda row: -float(row["probability"])
    )
    if not wrong:
        assert code == 2 and errors.endswith("test images right\n")
        return
    assert (code, errors) == (0, ""), errors
    with np.load(tmp_path / "explanations.npz") as arrays:
        assert arrays["gradcam_target"].tolist() == [row["predicted"] for row in wrong[:3]]
        names = arrays["images"].tolist()
    expected = [f"{row['label']} as {row['predicted']} {100 * float(row['probability']):.0f}%" for row in wrong[:3]]
    assert [name.split(" ", 1)[1] for name in names] == expected
    assert len(list(tmp_path.glob("*_gradcam.png"))) == len(names) and "sheet.png" in said


def test_wrong_and_images_do_not_go_together(runs, capsys):
    for args in (["--wrong", "2", "--images", "a.png"], ["--wrong", "0"], []):
        with pytest.raises(SystemExit):
            tool.parse(["--run", str(runs["cnn"]), "--out", "x", *args])
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_folder_that_cannot_be_made(runs, tmp_path, call):
    (tmp_path / "taken").touch()
    image = runs["cnn"].parent / "images" / "a" / "0.png"
    code, _, errors = call("--run", runs["cnn"], "--images", image, "--out", tmp_path / "taken")
    assert code == 2 and errors.count("\n") == 1 and "taken" in errors, errors


def test_an_image_that_cannot_be_read(runs, tmp_path, call):
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, _, errors = call("--run", runs["cnn"], "--images", tmp_path / "broken.png", "--out", tmp_path / "out")
    assert code == 2 and errors.count("\n") == 1 and "broken.png: cannot be read" in errors


def test_the_help_names_every_method(capsys):
    with pytest.raises(SystemExit):
        tool.parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in EXPLAINERS:
        assert f" {name}," in said or f" {name} (default)," in said


def test_budgets_beside_each_other(runs, tmp_path, call):
    """Each is the run with these overrides; a sheet has the same method with every budget side by side."""
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    _, models = opened(Wanted([runs["hybrid"]], [image], [], budgets=("unmerged", "trained")), ())
    most, least = (measure_or_say(model.run.model).gmacs for model in models)
    middle = f"{(most + least) / 2:.6g}"
    args = ["--run", runs["hybrid"], "--images", image, "--method", "gradient_rollout", "merge"]
    code, said, errors = call(*args, "--budgets", "unmerged", "trained", middle, "--target", "b", "--out", tmp_path)
    assert (code, errors) == (0, ""), errors
    assert "sheet.png: 1 image, 6 explanations of each" in said
    labels = ["unmerged", "trained", f"{float(middle):g}-GMACs"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "sheet.png",
        "explanations.npz",
        *(f"0_{label}_gradient_rollout.png" for label in labels),
        *(f"0_{label}_merge.{kind}" for label in labels[1:] for kind in ("png", "gif")),
    }
    with np.load(tmp_path / "explanations.npz") as arrays:
        maps = [arrays[f"{label}_gradient_rollout"] for label in labels]
    for label, given, found in zip(labels, ("merge.r=0", None, f"merge.target_gmacs={middle}"), maps, strict=True):
        alone = ["--run", runs["hybrid"], "--images", image, "--method", "gradient_rollout", "--target", "b"]
        assert call(*alone, "--out", tmp_path / label, *([given] if given else []))[0] == 0
        with np.load(tmp_path / label / "explanations.npz") as arrays:
            np.testing.assert_array_equal(arrays["gradient_rollout"], found)
    assert not np.allclose(maps[0], maps[1]) and not np.allclose(maps[1], maps[2])


@pytest.mark.parametrize(
    ("budgets", "line"),
    [
        (["half"], "error: --budgets half: give unmerged, trained, or GMACs of one image, as in 0.8"),
        (["unmerged", "-1"], "error: --budgets -1: give unmerged"),
        (["nan"], "error: --budgets nan: give unmerged"),
        (["99"], "error: "),
    ],
)
def test_mistakes_in_budgets_are_one_line(runs, tmp_path, call, budgets, line):
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    args = ["--run", runs["hybrid"], "--images", image, "--out", tmp_path / "out", "--budgets", *budgets]
    code, _, errors = call(*args)
    assert code == 2 and errors.count("\n") == 1 and errors.startswith(line), errors
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_merge_has_no_budgets(runs, tmp_path, call):
    image = runs["cnn"].parent / "images" / "a" / "0.png"
    code, _, errors = call("--run", runs["cnn"], "--images", image, "--out", tmp_path, "--budgets", "unmerged")
    assert code == 2 and errors.count("\n") == 1 and "is a cnn, which cannot merge tokens" in errors, errors


def test_pictures_for_tensorboard(runs, tmp_path, call):
    """Those of the folder, once, however often they were drawn; without the option there are none."""
    image = runs["hybrid"].parent / "images" / "a" / "0.png"
    args = ["--run", runs["hybrid"], "--images", image, "--method", "gradcam", "merge", "--out", tmp_path]
    assert call(*args)[0] == 0 and not list(tmp_path.glob("events*"))
    for _ in range(2):
        code, said, errors = call(*args, "--tensorboard")
        assert (code, errors) == (0, "") and f"tensorboard --logdir {tmp_path}" in said
    assert len(list(tmp_path.glob("events*"))) == 1
    board = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    files = {"0/gradcam": "0_gradcam.png", "0/merge": "0_merge.png", "0/merge in motion": "0_merge.gif"}
    files["sheet"] = "sheet.png"
    assert set(board.Tags()["images"]) == set(files)
    for tag, name in files.items():
        (event,) = board.Images(tag)
        assert event.encoded_image_string == (tmp_path / name).read_bytes()
        assert (event.width, event.height) == Image.open(tmp_path / name).size
