"""Runs that say together what an image is, on images that none of them has learnt."""

import shutil
from dataclasses import replace

import pytest
import torch

from engine.data import Arrays
from engine.measure.ensembles import evaluate_run, evaluate_together
from engine.runs.restore import load_run
from engine.submit.ensemble import gather
from engine.submit.predict import predict
from engine.tasks import ONE_LABEL
from models.settings import UserError
from tests.tools.colours import BLUE, GREEN, RED, colour_run, save_colour

pytestmark = pytest.mark.precision

NAMES = ["1", "10", "2"]


@pytest.fixture
def data(tmp_path):
    """Images of three colours that models half know: every third has another class's colour."""
    for i in range(60):
        colour = (RED, GREEN, BLUE)[i % 3 if i % 9 else 1]
        save_colour(tmp_path / "images" / NAMES[i % 3] / f"{i}.png", colour, seed=i)
    return {"name": "folder", "path": str(tmp_path / "images"), "size": 8}


def run_of(folder, data, **how):
    return colour_run(folder, data=data, split={"test": 0.3, "val": 0.1, **how.pop("split", {})}, **how)


def test_the_mean_is_what_predict_says(tmp_path, data):
    folders = [run_of(tmp_path / "a", data, sharp=0.5), run_of(tmp_path / "b", data, seed=1, sharp=0.5)]
    runs = [load_run(folder) for folder in folders]
    for mirror in (False, True):
        found = evaluate_together(folders, runs, mirror=mirror)
        paths = [tmp_path / "images" / path for path in runs[0].data.test.paths]
        said = predict(gather(folders), paths, ["flip"] if mirror else [])
        torch.testing.assert_close(found.logits.softmax(1).double(), said.probabilities, rtol=1e-5, atol=1e-6)
        right = [label == NAMES[i] for (label,), i in zip(said.names(), runs[0].data.test.labels.tolist())]
        assert found.metrics["top1"] == pytest.approx(sum(right) / len(right)) and 0 < sum(right) < found.n == 18


def test_other_images_are_refused(tmp_path, data):
    one = run_of(tmp_path / "a", data)
    for name, split in (("seed", {"test_seed": 1}), ("more", {"test": 0.5})):
        other = run_of(tmp_path / name, data, split=split)
        with pytest.raises(UserError, match=f"--run .*{name}: its test images are not those of .*/a, which may have"):
            evaluate_together([one, other], [load_run(one), load_run(other)])


def test_files_of_one_name_are_told_apart(tmp_path):
    for i in range(24):
        save_colour(tmp_path / "images" / NAMES[i % 3] / f"p{i}" / "scan.png", (RED, GREEN, BLUE)[i % 3], seed=i)
    data = {"name": "folder", "path": str(tmp_path / "images"), "size": 8}
    one, same = run_of(tmp_path / "a", data), run_of(tmp_path / "b", data, seed=1)
    other = run_of(tmp_path / "c", data, split={"test_seed": 1})
    assert evaluate_together([one, same], [load_run(one), load_run(same)]).n == 6
    with pytest.raises(UserError, match="its test images are not those"):
        evaluate_together([one, other], [load_run(one), load_run(other)])
    none = run_of(tmp_path / "d", data, split={"test": 0})
    for runs in ([one, none], [none, one]):
        with pytest.raises(UserError, match="--run .*d: it has no test images"):
            evaluate_together(runs, [load_run(run) for run in runs])


def test_files_of_the_same_names_elsewhere_are_other_images(tmp_path, data):
    one, other = run_of(tmp_path / "a", data), run_of(tmp_path / "b", {**data, "path": str(tmp_path / "else")})
    shutil.copytree(tmp_path / "images", tmp_path / "else")
    assert evaluate_together([one, other], [load_run(one), load_run(other)]).n == 18
    for i, file in enumerate((tmp_path / "else").rglob("*.png")):
        save_colour(file, BLUE, seed=i + 100)
    with pytest.raises(UserError, match="its test images are not those .* and folds"):
        evaluate_together([one, other], [load_run(one), load_run(other)])
    other = run_of(tmp_path / "c", data)
    runs = [load_run(one), load_run(other, ["seed=1"])]
    with pytest.raises(UserError, match="its val images are not those .* folds, split.val and seed"):
        evaluate_together([one, other], runs, "val")


def test_images_without_files_are_known_by_their_pixels(tmp_path, data):
    folder = run_of(tmp_path / "a", data)
    run = load_run(folder)
    test = Arrays(run.data.test.read(torch.arange(len(run.data.test))), run.data.test.labels)
    same = replace(run, data=replace(run.data, test=test))
    other = replace(run, data=replace(run.data, test=Arrays(test.images.flip(-1), test.labels)))
    assert evaluate_together([folder, folder], [run, same]).n == 18
    with pytest.raises(UserError, match="test images are not those"):
        evaluate_together([folder, folder], [same, other])
    names = replace(run, data=replace(run.data, classes=["1", "10", "3"]))
    with pytest.raises(UserError, match="its classes are not those"):
        evaluate_together([folder, folder], [run, names])
    order = torch.tensor([2, 0, 1])  # class i of the first is order[i] of the other
    turned = Arrays(test.images, order[test.labels])
    other = replace(same, data=replace(run.data, classes=["10", "2", "1"], test=turned))
    found = evaluate_together([folder, folder], [same, other])
    alone = evaluate_run(run, "test", keep_logits=True).logits
    torch.testing.assert_close(found.logits, ONE_LABEL.mean_logits([alone, alone[:, order]]))
