"""Probabilities of image files: by one run, by several, by the views of an image; and runs that do not go together."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from PIL import Image

from engine.data import FileSettings
from engine.data.loading.inputs import read_images, to_grey
from engine.data.loading.loader import Normalise
from engine.data.reading import decode
from engine.runs.checkpoints import checkpoint
from engine.runs.restore import load_model, load_run
from engine.settings.schema import RunSettings
from engine.submit import predict
from engine.submit.ensemble import classes_of, gather
from engine.submit.predict import views_of
from engine.tasks import ONE_LABEL
from engine.train.experiment import run_experiment
from models.settings import UserError, check
from tests.quiet import end_log
from tests.tools.colours import BLUE, COLOURS, FOLDER, GREEN, RED, VIT, colour_run, save_colour
from tests.tools.runs import TIMM

pytestmark = pytest.mark.precision

NAMES = ["1", "10", "2"]


@pytest.fixture
def images(tmp_path):
    """Nine files, three of each colour, in turns."""
    return [save_colour(tmp_path / "test" / f"{i}.png", COLOURS[NAMES[i % 3]], seed=i) for i in range(9)]


@pytest.fixture
def run(tmp_path):
    return colour_run(tmp_path / "run")


def by_hand(folder, paths, size=8, change=lambda view: view):
    """Probabilities as the model gives them for files that are decoded by themselves."""
    run = load_model(folder)
    pixels, bad = decode(paths, FileSettings(size=size))
    assert not bad
    with torch.inference_mode():
        return run.model.eval()(Normalise(run.mean, run.std)(change(pixels))).double().softmax(dim=1)


def best(predictions):
    """The class of each image, for a task with one class per image."""
    return [name for (name,) in predictions.names()]


def test_one_run_without_its_data(run, images):
    found = predict.predict(gather([run]), images)
    assert best(found) == NAMES * 3 and found.classes == NAMES
    assert found.probabilities.shape == (9, 3) and found.probabilities.dtype == torch.float64
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(found.probabilities, by_hand(run, images), rtol=0, atol=1e-6)
    top = found.top(2)
    assert [row[0][0] for row in top] == best(found) and all(row[0][1] > row[1][1] for row in top)


def test_batches_do_not_matter(run, images):
    whole = predict.predict(gather([run], overrides=["train.batch_size=9"]), images).probabilities
    for size in (1, 2, 9, 64):
        some = predict.predict(gather([run], overrides=[f"train.batch_size={size}"]), images).probabilities
        torch.testing.assert_close(some, whole, rtol=0, atol=1e-6)


def test_never_more_than_two_batches_in_memory(run, images, monkeypatch):
    parts = []
    monkeypatch.setattr(
        predict, "read_images", lambda paths, *how: parts.append(len(paths)) or read_images(paths, *how)
    )
    for i, (start, pixels, bad) in enumerate(predict.read_ahead(images, FileSettings(size=8), 3, 2)):
        assert (start, len(pixels), bad) == (2 * i, min(2, 9 - 2 * i), {}) and len(parts) <= i + 2
    assert parts == [2, 2, 2, 2, 1]


def test_runs_that_number_their_classes_otherwise(tmp_path, run, images):
    """The trap: equal sets of names in another order. The same models, row by row, must give the same by name."""
    turned = tmp_path / "turned"
    shutil.copytree(run, turned)
    state, order = checkpoint.load(run / "best.pt"), [2, 0, 1]
    for key in ("head.weight", "head.bias"):
        state["model"][key] = state["model"][key][order].clone()
    checkpoint.save(turned / "best.pt", {**state, "classes": [NAMES[i] for i in order]})
    first, second = (predict.predict(gather([folder]), images) for folder in (run, turned))
    assert second.classes == ["2", "1", "10"] and best(second) == best(first)
    both = predict.predict(gather([run, turned]), images)
    assert both.classes == NAMES
    torch.testing.assert_close(both.probabilities, first.probabilities, rtol=0, atol=1e-6)


def test_weights_and_folds(tmp_path, images):
    one = colour_run(tmp_path / "one", sharp=1.0)
    folds = tmp_path / "folds"
    colour_run(folds, split={"folds": 2})
    (folds / "best.pt").unlink()
    for i in range(2):
        colour_run(folds / f"fold{i}", seed=i + 5, sharp=2.0, split={"folds": 2, "fold": i})
    alone = {f: predict.predict(gather([f]), images).probabilities for f in (one, folds / "fold0", folds / "fold1")}
    mean = (alone[folds / "fold0"] + alone[folds / "fold1"]) / 2
    torch.testing.assert_close(predict.predict(gather([folds]), images).probabilities, mean)
    weighted = predict.predict(gather([one, folds], [3.0, 1.0]), images).probabilities
    torch.testing.assert_close(weighted, 0.75 * alone[one] + 0.25 * mean)
    assert classes_of(folds) == (NAMES, ONE_LABEL) == classes_of(one)

    (folds / "fold1").rename(tmp_path / "kept")
    colour_run(folds / "fold1", split={"folds": 2, "fold": 1}, train={"lr": 0.5})  # of another run
    with pytest.raises(UserError, match=r"train.lr = .* in .*fold1; give .*fold1/settings.yaml the same value"):
        gather([folds])
    (folds / "fold1" / "results.json").unlink()
    with pytest.raises(UserError, match=r"1 of 2 folds are not finished: fold1; continue with tools/train.py --resume"):
        gather([folds])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0], [1e308, 1e308]]
)
def test_weights_that_are_none(run, weights):
    with pytest.raises(UserError, match="--weights"):
        gather([run, run], weights)


def test_a_run_counts_once(tmp_path, run):
    folds = tmp_path / "folds"
    colour_run(folds, split={"folds": 2})
    (folds / "best.pt").unlink()
    for i in range(2):
        colour_run(folds / f"fold{i}", split={"folds": 2, "fold": i})
    for folders, name in (([run, run / ".." / run.name], "run"), ([folds, folds / "fold1"], "fold1")):
        with pytest.raises(UserError, match=f"{name}: given twice; give it once, and set how much"):
            gather(folders)
    with pytest.raises(UserError, match="split: .* for one fold alone give its folder, such as --run .*fold0"):
        gather([folds], overrides=["split.fold=1"])


def test_runs_on_other_classes(tmp_path, run):
    other = colour_run(tmp_path / "other", {"1": RED, "3": GREEN, "2": BLUE})
    said = r"1 only .*run has \('10'\), 1 only .*other has \('3'\); give runs on the same classes"
    with pytest.raises(UserError, match=said):
        gather([run, other])
    many = colour_run(tmp_path / "many", data={"name": "csv", "path": "no.csv", "labels": "many"})
    with pytest.raises(UserError, match="its labels are not of the kind that .* has, such as many labels for an image"):
        gather([run, many])


def test_runs_that_spell_a_class_in_other_bytes(tmp_path, images):
    """The class é is composed in one run and decomposed in the other, which changes its place in their logits."""
    data = {"name": "csv", "path": "no.csv", "labels": "many"}
    one = colour_run(tmp_path / "one", {"e": RED, "f": GREEN, "é": BLUE}, data=data)
    other = colour_run(
        tmp_path / "other",
        {"e": RED, "e\u0301": BLUE, "f": GREEN},
        data=data,
        results={"metric": "map", "test_metrics": {"map": 0.5}, "thresholds": {"e": 0.2, "e\u0301": 0.3, "f": 0.4}},
    )
    found = predict.predict(gather([one, other]), images)
    assert found.classes == ["e", "f", "é"] and found.thresholds == pytest.approx([0.35, 0.45, 0.4])
    alone = predict.predict(gather([other]), images).probabilities[:, [0, 2, 1]]
    both = (predict.predict(gather([one]), images).probabilities + alone) / 2
    torch.testing.assert_close(found.probabilities, both)
    assert [names for names in found.names()] == [["e"], ["f"], ["é"]] * 3


def test_folders_that_are_no_runs(tmp_path, run):
    with pytest.raises(UserError, match="no: not a run folder"):
        gather([tmp_path / "no"])
    (run / "best.pt").unlink()
    with pytest.raises(UserError, match="run: has no best.pt; finish the run with tools"):
        gather([run])


def test_flip_and_crops(run, images):
    ensemble = gather([run])
    plain, mirrored = by_hand(run, images), by_hand(run, images, change=lambda view: view.flip(-1))
    flip = predict.predict(ensemble, images, ["flip"]).probabilities
    torch.testing.assert_close(flip, (plain + mirrored) / 2, rtol=0, atol=1e-6)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]  # 8 of 9 pixels; half a pixel is none
    views = [by_hand(run, images, 9, lambda v, y=y, x=x: v[:, :, y : y + 8, x : x + 8]) for y, x in corners]
    crops = predict.predict(ensemble, images, ["crops"]).probabilities
    torch.testing.assert_close(crops, torch.stack(views).mean(0), rtol=0, atol=1e-6)
    assert not torch.equal(flip, plain) and not torch.equal(crops, plain)


def test_the_views_of_an_image():
    images = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6)
    assert [v[0, 0, 0, 0].item() for v in views_of(images, 4, ["crops"])] == [0, 2, 12, 14, 7]
    ten = list(views_of(images, 4, ["flip", "crops"]))
    assert len(ten) == 10 and all(torch.equal(b, a.flip(-1)) for a, b in zip(ten[::2], ten[1::2]))
    assert all(torch.equal(a, b) for a, b in zip(views_of(images, 6, []), [images]))


def test_bad_images_are_all_named_and_none_is_left_out(tmp_path, run, images, caplog):
    images[1].write_bytes(b"")
    images[7].write_bytes(images[8].read_bytes()[:100])
    with caplog.at_level(logging.ERROR, "hybridmerge"), pytest.raises(UserError, match="2 of 9 images cannot be read"):
        predict.predict(gather([run], overrides=["data.on_error=skip"]), images)
    assert "1.png" in caplog.text and "7.png" in caplog.text


def test_probabilities_that_are_none(run, images):
    state = checkpoint.load(run / "best.pt")
    state["model"]["head.bias"][1] = float("nan")
    checkpoint.save(run / "best.pt", state)
    with pytest.raises(UserError, match=r"gives nan or inf for 9 images \(.*0.png"):
        predict.predict(gather([run]), images)


def test_grey_models_see_what_pil_makes_grey(tmp_path):
    greys = {"dark": (30,) * 3, "light": (220,) * 3}
    run = colour_run(tmp_path / "run", greys, {**VIT, "in_chans": 1}, data={"name": "digits"})
    paths = [save_colour(tmp_path / f"{i}.png", greys[name], i) for i, name in enumerate(["light", "dark"])]
    assert best(predict.predict(gather([run]), paths)) == ["light", "dark"]
    paths = [save_colour(tmp_path / "8.png", (90, 160, 30), size=(8, 8))]
    pixels, _ = decode(paths, FileSettings(size=8))
    with Image.open(paths[0]) as image:
        assert to_grey(pixels)[0, 0].flatten().tolist() == list(image.convert("L").tobytes())


def test_models_of_other_channels(tmp_path, images):
    run = colour_run(tmp_path / "run", {"a": (1, 2), "b": (200, 100)}, {**VIT, "in_chans": 2})
    with pytest.raises(UserError, match="model.in_chans = 2: an image file has 1 or 3"):
        predict.predict(gather([run]), images)


def test_images_are_read_as_the_runs_own(tmp_path):
    """Half of the image is red, its middle is blue: what is seen depends on the run's data settings."""
    path = tmp_path / "a.png"
    image = Image.new("RGB", (24, 8), RED)
    image.paste(BLUE, (8, 0, 16, 8))
    image.save(path)
    crop, squash = (colour_run(tmp_path / fit, data={**FOLDER, "size": 8, "fit": fit}) for fit in ("crop", "squash"))
    arrays = colour_run(tmp_path / "arrays", data={"name": "npz", "path": "no.npz"})
    found = [best(predict.predict(gather([folder]), [path])) for folder in (crop, squash, arrays)]
    assert found == [["2"], ["1"], ["2"]]
    with pytest.raises(UserError, match="data.size = 9: the model takes 8 px; set data.size=8"):
        predict.predict(gather([crop], overrides=["data.size=9"]), [path])


def test_merging_is_the_overrides(tmp_path, run, images, caplog):
    with caplog.at_level(logging.WARNING, "hybridmerge"):
        merged = predict.predict(gather([run], overrides=["merge.r=3"]), images)
    assert "merging differs from training: tome, tokens removed by each block: [3, 3]" in caplog.text
    plain = predict.predict(gather([run]), images)
    assert best(merged) == best(plain) and not torch.equal(merged.probabilities, plain.probabilities)
    lenet = colour_run(tmp_path / "lenet", model={"name": "lenet5", "img_size": 32})
    with pytest.raises(UserError, match="model.merge: unknown key"):
        gather([lenet], overrides=["merge.r=3"])
    assert best(predict.predict(gather([run, lenet]), images)) == NAMES * 3


def test_many_labels(tmp_path, images):
    data = {"name": "csv", "path": "no.csv", "labels": "many"}
    half = {"1": 0.5, "10": 0.5, "2": 1.0}
    one = colour_run(
        tmp_path / "one", results={"metric": "map", "test_metrics": {"map": 0.5}, "thresholds": half}, data=data
    )
    found = predict.predict(gather([one]), images)
    assert found.thresholds == [0.5, 0.5, 1.0] and found.names() == [["1"], ["10"], []] * 3
    assert (found.probabilities.sum(1) - 1).abs().max() > 0.01, "each by itself"
    other = colour_run(tmp_path / "other", dict(reversed(COLOURS.items())), data=data)  # without thresholds: 1/2
    both = predict.predict(gather([one, other], [1, 3]), images)
    assert both.classes == NAMES and both.thresholds == [0.5, 0.5, 0.25 * 1.0 + 0.75 * 0.5]


@pytest.mark.parametrize("finetune", [{"mode": "head"}, {"mode": "lora", "rank": 2}])
def test_runs_that_keep_what_learnt(tmp_path, finetune):
    """The rest comes from the weights that the run started from; its images may be gone."""
    if finetune["mode"] == "lora":
        pytest.importorskip("peft")
    start = colour_run(tmp_path / "start", {"a": RED, "b": BLUE}, TIMM)
    for i in range(16):
        save_colour(tmp_path / "data" / "rb"[i % 2] / f"{i}.png", (RED, BLUE)[i % 2], i, (32, 32))
    body = {
        "name": "part",
        "threads": 1,
        "device": "cpu",
        "finetune": finetune,
        "log": {"images": 0},
        "model": {**TIMM, "num_classes": 2, "weights": str(start)},
        "split": {"test": 0.25, "val": 0.25},
        "data": {"name": "folder", "path": str(tmp_path / "data"), "size": 32},
        "train": {"epochs": 2, "batch_size": 4, "lr": 0.01},
    }
    folder = tmp_path / "part"
    folder.mkdir()
    run_experiment(check(RunSettings, body), folder)
    end_log()
    run = load_run(folder)
    with torch.inference_mode():
        pixels = Normalise(run.data.mean, run.data.std)(run.data.test.read(torch.arange(len(run.data.test))))
        expected = run.model.eval()(pixels).double().softmax(dim=1)
    kept = tmp_path / "kept"
    (tmp_path / "data").rename(kept)
    paths = [kept / path[len(str(tmp_path / "data")) + 1 :] for path in run.data.test.paths]
    found = predict.predict(gather([folder], overrides=["train.precision=fp32"]), paths)
    torch.testing.assert_close(found.probabilities, expected, rtol=0, atol=1e-5)
    assert found.classes == ["b", "r"]
