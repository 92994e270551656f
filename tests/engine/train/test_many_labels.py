"""Arrays with a column for each label, as ChestMNIST's, train as a table of the same images does."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from engine.measure.ensembles import evaluate_run
from engine.runs.restore import load_run
from engine.settings.schema import RunSettings
from engine.submit.ensemble import gather
from engine.submit.joined import labels_in
from engine.submit.predict import predict
from engine.submit.sample import Sample
from engine.submit.submission import Outputs, write_submission
from engine.tasks import MANY_LABELS
from engine.train.experiment import run_experiment
from models.settings import check
from tests.quiet import end_log

VIT = {"name": "vit", "img_size": 8, "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
COUNTS = {"train": 40, "val": 12, "test": 12}
NAMES = ("0", "1", "2")


@pytest.fixture
def images(tmp_path):
    """The same images in an archive and in a table; each label brightens a part of them."""
    random, arrays = np.random.default_rng(0), {}
    rows = [("path", "split", *NAMES)]
    for split, count in COUNTS.items():
        labels = random.integers(0, 2, (count, 3), dtype=np.uint8)
        pixels = random.integers(0, 60, (count, 8, 8, 3), dtype=np.uint8)
        for label in range(3):
            pixels[:, 2 * label : 2 * label + 2] += (150 * labels[:, label])[:, None, None, None]
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels}
        for i in range(count):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.fromarray(pixels[i]).save(tmp_path / split / f"{i}.png")
            rows.append((f"{split}/{i}", split, *labels[i]))
    np.savez(tmp_path / "chest.npz", **arrays)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def train(folder, **data):
    body = {
        "name": folder.name,
        "threads": 1,
        "device": "cpu",
        "model": VIT,
        "data": {"labels": "many", **data},
        "train": {"epochs": 6, "batch_size": 8, "lr": 0.01, "precision": "fp32"},
        "log": {"images": 0},
    }
    folder.mkdir()
    results = run_experiment(check(RunSettings, body), folder)
    end_log()
    return results


def test_arrays_train_as_a_table_does(images):
    of_arrays = train(images / "arrays", name="npz", path=str(images / "chest.npz"))
    of_table = train(images / "files", name="csv", path=str(images / "table.csv"), size=8)
    assert of_arrays.metric == "map" and of_arrays.test_images == 12 and of_arrays.data_sha256 == of_table.data_sha256
    assert of_arrays.test_metrics == of_table.test_metrics and of_arrays.test_metrics["map"] > 0.8
    assert of_arrays.thresholds == of_table.thresholds and list(of_arrays.thresholds) == list(NAMES)

    run = load_run(images / "arrays")
    assert run.data.task is MANY_LABELS and evaluate_run(run, "test").metrics == of_arrays.test_metrics
    assert not (images / "arrays" / "predictions.csv").exists(), "as tables with many labels"

    paths = [images / "test" / f"{i}.png" for i in range(12)]
    found = predict(gather([images / "arrays"]), paths)
    sample = Sample("sample.csv", ["id", "labels"], 0, [str(i) for i in range(12)])
    write_submission(Outputs(images / "out.csv"), sample, found)
    with open(images / "out.csv", newline="") as file:
        written = [labels_in(cell, MANY_LABELS) for _, cell in list(csv.reader(file))[1:]]
    expected = found.probabilities >= found.probabilities.new_tensor(list(of_arrays.thresholds.values()))
    assert written == [[NAMES[k] for k in range(3) if row[k]] for row in expected.tolist()]
