"""What is reported of predictions: the file, the matrix, the pairs, and pictures that can be drawn of anything."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.data.arrays import Arrays
from engine.figures.confusion import confused_figure, confusion_figure
from engine.figures.drawing import draw
from engine.measure.confusion import class_accuracy, confusion_matrix, most_confused
from engine.measure.evaluate import evaluate
from engine.measure.predictions import (
    COLUMNS,
    Predictions,
    predictions_of,
    read_predictions,
    read_tested,
    write_predictions,
)
from engine.runs.tracking import Tracker
from engine.tasks import ONE_LABEL
from models.settings import UserError
from tests.engine.data.conftest import random_arrays


def said(labels, predicted, probabilities=None) -> Predictions:
    probabilities = np.linspace(0.25, 1, len(labels)) if probabilities is None else probabilities
    return Predictions(np.array(labels), np.array(predicted), np.array(probabilities, np.float32))


def test_predictions_are_the_models():
    model, images, labels = nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
    batches = list(zip(images.split(4), labels.split(4)))
    evaluated = evaluate(model, batches, ONE_LABEL, 3, torch.device("cpu"), nullcontext(), keep_logits=True)
    assert evaluate(model, batches, ONE_LABEL, 3, torch.device("cpu"), nullcontext()).logits is None
    found = predictions_of(labels, evaluated.logits, ONE_LABEL)
    assert (found.predicted == found.labels).mean() == pytest.approx(evaluated.metrics["top1"])
    probabilities = model(images).softmax(1)
    assert found.predicted.tolist() == probabilities.argmax(1).tolist()
    assert found.probabilities.tolist() == pytest.approx(probabilities.amax(1).tolist())
    assert found.labels.tolist() == (torch.arange(10) % 3).tolist()


def test_the_file_is_quoted_and_reads_back(tmp_path):
    classes = ["com,ma", 'quote"d', "new\nline", "ünï"]
    found = said([0, 1, 2, 3], [1, 2, 3, 3])
    paths = ["/data/a,b.jpg", '/data/"c".jpg', "/data/new\nline.jpg", "/data/\udcff.jpg"]  # the last is not UTF-8
    write_predictions(tmp_path / "predictions.csv", found, paths, classes)
    text = (tmp_path / "predictions.csv").read_bytes()
    assert b"/data/\xff.jpg" in text and text.startswith(b"image,label,predicted,probability\n")
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == paths and [row["label"] for row in rows] == classes
    assert [row["predicted"] for row in rows] == classes[1:] + classes[3:]
    again = read_predictions(tmp_path / "predictions.csv", classes)
    for name in ("labels", "predicted", "probabilities"):
        assert getattr(again, name).tolist() == pytest.approx(getattr(found, name).tolist(), abs=1e-6)
    write_predictions(tmp_path / "predictions.csv", found, None, classes)
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1].startswith('0,"com,ma",')


def test_names_that_a_spreadsheet_would_compute_are_guarded(tmp_path):
    file, classes = tmp_path / "predictions.csv", ["=cmd|' /C calc'!A0", "@x", "-1", "'=y", "plain"]
    found, paths = said([0, 1, 2, 3, 4], [1, 2, 3, 4, 0]), ["=a.png", "+b.png", "c.png", "d.png", "e.png"]
    write_predictions(file, found, paths, classes)
    with open(file, newline="") as opened:
        _, *rows = csv.reader(opened)
    assert [row[0] for row in rows] == ["'=a.png", "'+b.png", "c.png", "d.png", "e.png"]
    assert [row[1] for row in rows] == ["'=cmd|' /C calc'!A0", "'@x", "-1", "''=y", "plain"]
    again = read_predictions(file, classes)
    assert again.labels.tolist() == [0, 1, 2, 3, 4] and again.predicted.tolist() == [1, 2, 3, 4, 0]
    assert list(again.images) == paths
    older = "image,label,predicted,probability\n=a.png,@x,'=y,0.5\n"
    file.write_text(older)
    assert read_predictions(file, classes).labels.tolist() == [1]
    assert read_predictions(file, classes).predicted.tolist() == [3]


def test_names_are_read_back_in_other_bytes(tmp_path):
    file = tmp_path / "predictions.csv"
    write_predictions(file, said([0, 1], [1, 1]), ["a/\u00e9.png", "a/b.png"], ["b", "\u00e9"])
    found = read_predictions(file, ["b", "e\u0301"])
    assert found.labels.tolist() == [0, 1] and found.predicted.tolist() == [1, 1]
    images = random_arrays(2).take(torch.arange(2))
    moved = Arrays(images.images, torch.tensor([0, 1]), ("/x/a/e\u0301.png", "/x/a/b.png"))
    assert read_tested(file, moved, ["b", "e\u0301"]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "image,label\n",
        ",".join(COLUMNS) + "\n0,a,c,0.5\n",
        ",".join(COLUMNS) + "\n0,a\n",
        ",".join(COLUMNS) + "\n0,a,a,high\n",
        ",".join(COLUMNS) + '\n0,"a',
    ],
)
def test_a_file_that_training_did_not_write(tmp_path, text):
    if text is not None:
        (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(UserError, match=r"predictions.csv: .*; delete .* and run it again"):
        read_predictions(tmp_path / "predictions.csv", ["a", "b"])


def test_matrix_accuracies_and_pairs_by_hand():
    found = said([0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 0, 1, 1, 0, 2])
    matrix = confusion_matrix(found.labels, found.predicted, 4)
    assert matrix.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert class_accuracy(matrix, list("abcd")) == {"a": 1 / 3, "b": 0.5, "c": pytest.approx(1 / 3), "d": None}
    pairs = [(pair.first, pair.second, pair.as_second, pair.as_first, pair.count) for pair in most_confused(matrix)]
    assert pairs == [(0, 1, 2, 1, 3), (2, 0, 1, 0, 1), (2, 1, 1, 0, 1)]
    assert len(most_confused(matrix, most=1)) == 1 and most_confused(np.diag([3, 4])) == []


@pytest.mark.parametrize("classes", [2, 40, 1000])
def test_any_number_of_classes_is_drawn(tmp_path, classes):
    labels = np.arange(2 * classes) % classes
    matrix = confusion_matrix(labels, labels[::-1], classes)
    names = [f"$\\frac{i}_ \ud800 \u6f22" for i in range(classes)]  # neither mathematics nor drawable letters
    with Tracker(tmp_path) as tracker:
        draw(tmp_path, tracker, 3, "test/confusion", confusion_figure(matrix, names, "50 $ of_1"))
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 300 and max(picture.size) < 3000
        assert len(np.unique(np.asarray(picture))) > 10
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["confusion", "events", "metrics"]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_examples_are_the_surest_mistakes_of_both_directions(channels):
    labels = [0] * 10 + [1] * 3
    predicted = [1] * 9 + [0] + [0] * 2 + [1]
    found = said(labels, predicted)
    matrix = confusion_matrix(found.labels, found.predicted, 3)
    figure = confused_figure(most_confused(matrix), found, random_arrays(13, channels=channels), list("abc"), "pairs")
    (axes,) = figure.axes
    title, *texts = [text.get_text() for text in axes.texts]
    assert title == "pairs" and texts[::2] == ["a\nas b"] * 4 + ["b\nas a"] * 2
    shares = [float(text.split()[0]) for text in texts[1::2]]
    assert shares[:4] == sorted(shares[:4], reverse=True) and shares[0] == round(100 * found.probabilities[8])


def test_nothing_confused_is_a_picture_too():
    found = said([0, 1], [0, 1])
    figure = confused_figure([], found, random_arrays(2), ["a", "b"], "pairs")
    assert [text.get_text() for text in figure.axes[0].texts] == ["pairs: none"]
