"""What labels mean: a third kind of label is a class and a line in a table, and trains from end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from engine.data import DATASETS, Arrays, RawData, build_data
from engine.data.settings import ArraySettings, SplitSettings
from engine.data.sources.digits import DigitsSettings, load_digits
from engine.measure.ensembles import evaluate_run
from engine.measure.evaluate import evaluate_logits
from engine.measure.metrics import METRICS, build_metrics
from engine.measure.predictions import predictions_of
from engine.runs.restore import load_run
from engine.study.table import compare
from engine.tasks import MANY_LABELS, ONE_LABEL, TASKS, OneLabel, Task, best_thresholds, task_with_metric, title_of
from engine.train.experiment import run_experiment


def test_metrics_belong_to_one_task_each():
    titles = [title for task in TASKS.values() for title in task.titles]
    assert sorted(titles) == sorted(METRICS), "each entry of METRICS has a title in one task"


@pytest.mark.parametrize("task", TASKS.values())
def test_every_metric_has_a_title_and_is_measured(task):
    assert set(task.titles) <= set(METRICS) and task_with_metric(task.main_metric) is task
    assert set(build_metrics(task, 4)) == set(task.titles)
    assert title_of("top5") == "top-5" and title_of("map") == "mAP"


def test_predictions_and_how_many_are_right():
    logits = torch.tensor([[2.0, -1.0, 1.0], [-1.0, -2.0, 3.0]])
    assert ONE_LABEL.predicted(ONE_LABEL.probabilities(logits), None) == [[0], [2]]
    assert MANY_LABELS.predicted(MANY_LABELS.probabilities(logits), torch.full((3,), 0.5)) == [[0, 2], [2]]
    assert ONE_LABEL.correct(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]])
    assert ONE_LABEL.correct(logits, mixed).tolist() == [1.0, 0.0]
    binary = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert MANY_LABELS.correct(logits, binary).tolist() == pytest.approx([1.0, 1 / 3])


def test_classes_are_renumbered():
    order = torch.tensor([2, 0, 1])
    labels = torch.tensor([0, 1, 2, 2])
    assert order[ONE_LABEL.renumbered(labels, order)].tolist() == labels.tolist()
    binary = F.one_hot(labels).float()
    assert MANY_LABELS.renumbered(binary, order).argmax(1).tolist() == ONE_LABEL.renumbered(labels, order).tolist()


def test_a_metric_is_a_line_and_a_title(monkeypatch):
    monkeypatch.setitem(METRICS, "macro_f1", lambda classes: MulticlassF1Score(classes, average="macro"))
    monkeypatch.setattr(OneLabel, "titles", {**ONE_LABEL.titles, "macro_f1": "macro F1"})
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]), torch.tensor([0, 1, 1])
    metrics = evaluate_logits(logits, labels, ONE_LABEL).metrics
    assert list(metrics) == ["top1", "top5", "balanced_accuracy", "macro_f1"] and metrics["macro_f1"] == pytest.approx(
        2 / 3
    )
    assert title_of("macro_f1") == "macro F1" and ONE_LABEL.main_metric == "top1"


class Cumulative(OneLabel):
    """Levels as classes: sigmoid of logit k is the probability of a level above k; the last logit is not used."""

    def probabilities(self, logits: Tensor) -> Tensor:
        above = logits[:, :-1].sigmoid().cummin(dim=1).values
        ends = above.new_ones(len(above), 1)
        return torch.cat([ends, above], 1) - torch.cat([above, 0 * ends], 1)

    def chosen(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits).argmax(dim=1)


def test_predictions_are_those_of_the_task():
    """Of a task with one class whose logits are no scores of classes."""
    logits, labels = torch.tensor([[3.0, 2.0, 9.0], [3.0, -3.0, 0.0], [-3.0, -4.0, 5.0]]), torch.tensor([2, 1, 0])
    predictions = predictions_of(labels, logits, Cumulative())
    assert predictions.predicted.tolist() == [2, 1, 0]
    assert predictions.probabilities[0] == pytest.approx(logits[0, 1].sigmoid().item())


class WithinOne(Metric):
    """The fraction of images whose level is at most one away."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("near", torch.zeros(()), "sum")
        self.add_state("seen", torch.zeros(()), "sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.near += ((Levels.level(logits) - labels).abs() <= 1).sum()
        self.seen += len(labels)

    def compute(self) -> Tensor:
        return self.near / self.seen


class Levels(Task):
    """Ordered levels, one logit for each threshold between two of them: P(level > k) = sigmoid(logit k)."""

    titles = {"within_one": "within one"}
    score_title = "accuracy within one level"
    counts_images = True

    @staticmethod
    def level(logits: Tensor) -> Tensor:
        return (logits[:, 1:] > 0).sum(dim=1)

    @staticmethod
    def exceeded(labels: Tensor, classes: int) -> Tensor:
        return (labels[:, None] >= torch.arange(classes)).float()

    def accepts(self, labels: Tensor) -> bool:
        return labels.dtype == torch.int64 and labels.ndim == 1

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, self.exceeded(targets, logits.shape[1]))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def mean_logits(self, views: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(views)).mean(0)

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (self.level(logits) == targets).float()

    def predicted(self, probabilities: Tensor, thresholds: Tensor | None) -> list[list[int]]:
        return [[level] for level in self.level(probabilities.logit()).tolist()]

    def counts(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.bincount(minlength=num_classes)


LEVELS = Levels()


class LevelSettings(ArraySettings):
    name: Literal["digits"] = "digits"

    @property
    def task(self) -> Task:
        return LEVELS


def load_levels(settings: LevelSettings) -> RawData:
    """The digits as levels: labels are those of the digits."""
    raw = load_digits(DigitsSettings(name="digits"))
    train, test = (Arrays(part.images, part.labels) for part in (raw.train, raw.test))
    return RawData(train, test, raw.classes, task=LEVELS)


def test_a_third_kind_of_label_trains_and_is_read_back(tiny, folder, monkeypatch):
    """A class, a line in TASKS, one in METRICS and a dataset: nothing else knows of it."""
    monkeypatch.setitem(TASKS, "levels", LEVELS)
    monkeypatch.setitem(METRICS, "within_one", lambda classes: WithinOne())
    monkeypatch.setitem(DATASETS, "digits", (LevelSettings, load_levels))
    settings = tiny(
        augment={"mixup": 0.0, "cutmix": 0.0, "erase": 0.0, "crop": 0},
        train={"epochs": 4, "label_smoothing": 0.0, "ema": 0.0, "lr": 0.01},
        split={"val": 0.1, "part": 1.0},
    )
    assert build_data(settings.data, SplitSettings(), 0).task is LEVELS
    results = run_experiment(settings, folder)
    assert results.metric == "within_one" and results.test_score > 0.4
    low, high = results.test_interval
    assert low < results.test_score < high
    assert not (folder / "predictions.csv").exists() and not (folder / "confusion.png").exists()
    assert evaluate_run(load_run(folder), "test").score == results.test_score
    assert compare([folder])[0].metric == "within_one"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/within_one"] for line in lines if "val/within_one" in line][-1] > 0.4


def test_best_thresholds_by_trying_them_all():
    rng = torch.Generator().manual_seed(0)
    scores = (torch.rand(40, 3, generator=rng) * 20).round() / 20  # with ties
    truth = (torch.rand(40, 3, generator=rng) < 0.4).float()
    truth[:, 2] = 0

    def f1(column: int, threshold: float) -> float:
        said = scores[:, column] >= threshold
        return float(2 * (said * truth[:, column]).sum() / (said.sum() + truth[:, column].sum()).clamp(min=1))

    found = best_thresholds(scores, truth)
    assert found[2] == 0.5
    for column in (0, 1):
        most = max(f1(column, threshold) for threshold in torch.linspace(0, 1, 201).tolist())
        assert f1(column, found[column]) == pytest.approx(most)
