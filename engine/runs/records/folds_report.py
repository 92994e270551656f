"""`FoldsReport`: what all folds measured together, stored as `folds.json` in the folder that holds them.

A new field needs a default that is correct for reports written before it existed; see `FoldsReport.agrees_with`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from engine.files import finite
from engine.runs.records.class_scores import ClassScores
from engine.runs.records.record import Amount, Count, Fraction, Interval, Record, RunRecord, check_version, metrics_in
from engine.runs.records.results import Results

VERSION = 2  # of the report: 1 has no `version`, and no field that is in LATER
LATER = frozenset(
    {
        "selected_by",
        "balanced_accuracy",
        "label_precision",
        "class_images",
        "worst_class",
        "worst_class_score",
        "worst_class_images",
        "unequal",
        "test_balanced_accuracy",
    }
)
# Fields that are left out of the JSON where they are None, because another kind of label has them, or other runs.
OMITTED = (
    "selected_by",
    "balanced_accuracy",
    "class_accuracy",
    "label_precision",
    "class_images",
    "worst_class",
    "worst_class_score",
    "worst_class_images",
    "confused",
    "confusion",
)


class Pooled(Record):
    """The accuracy on the images of all folds, each predicted by the model that was not trained on it."""

    accuracy: Fraction
    correct: Count
    interval: Interval


class Unseen(Record):
    """The interval in which the accuracy on so many new images is expected."""

    images: Count
    interval: Interval


class Spread(Record):
    """How the scores of folds vary, see `engine.measure.intervals.spread`."""

    images: Count = Field(description="number of test images of all folds")
    mean: Fraction = Field(description="of the folds' main metric")
    std: Amount = Field(description="sample standard deviation of the folds' main metric")
    interval: Interval = Field(description="95 % interval of the mean")
    pooled: Pooled | None = Field(description="None for metrics that count no images")
    unseen: Unseen | None = Field(description="None for metrics that count no images")


class FoldResult(Record):
    """The results of one fold. In JSON the metrics have keys of their own, as in `results.json`."""

    fold: Count
    images: Count = Field(description="number of its test images")
    test_score: Fraction = Field(description="the main metric")
    test_loss: Amount | None
    test_interval: Interval | None = Field(description="95 % interval of the accuracy")
    val_score: Fraction | None = Field(description="the best value of the metric that selects the weights")
    test_balanced_accuracy: Fraction | None = None
    worst_class: str | None = None
    worst_class_score: Fraction | None = None
    worst_class_images: Count | None = None
    best_step: Count
    train_images: Count
    seconds: Amount
    data_sha256: str | None

    @classmethod
    def of(cls, number: int, results: Results) -> FoldResult:
        """Returns the part of a fold's results that the report tells."""
        same = {name: getattr(results, name) for name in cls.model_fields if name in Results.model_fields}
        balanced = results.test_metrics.get("balanced_accuracy")
        own = {"images": results.test_images, "test_score": results.test_score, "test_balanced_accuracy": balanced}
        return cls.checked({**same, **own, "fold": number})


class ConfusedPair(Record):
    """Two classes, and how many images of each were predicted as the other."""

    classes: Annotated[tuple[str, str], Field(strict=False)]
    first_as_second: Count
    second_as_first: Count


class FoldsReport(RunRecord):
    """What all folds measured. Accuracies and shares are fractions; None means not measured, or not recorded."""

    version: int = Field(VERSION, description="of this record")
    folds: Count = Field(description="number of folds")
    test_seed: int = Field(description="of the split into folds")
    spread: Spread = Field(description="how the folds' scores vary; in JSON its fields stand beside the others")
    balanced_accuracy: Fraction | None = Field(None, description="mean accuracy of the classes, on all images")
    class_accuracy: dict[str, Fraction | None] | None = Field(
        None, description="accuracy on each class's images; None for many labels"
    )
    label_precision: dict[str, Fraction | None] | None = Field(
        None, description="average precision of each label, the mean over folds by their images; None for one label"
    )
    class_images: dict[str, Count] | None = Field(None, description="number of test images of each class or label")
    worst_class: str | None = Field(None, description="the class, or label, with the lowest score")
    worst_class_score: Fraction | None = Field(None, description="its accuracy, or average precision")
    worst_class_images: Count | None = Field(None, description="number of its images")
    unequal: bool = Field(False, description="whether classes are of unequal size, among training or test images")
    seconds: Amount = Field(description="training time of all folds, seconds")
    fold: list[FoldResult] = Field(description="the results of each fold")
    confused: list[ConfusedPair] | None = Field(
        None, description="the pairs of classes that are confused most; None for many labels"
    )
    confusion: dict[str, dict[str, Count]] | None = Field(
        None, description="for each true class the number of its images by predicted class; None for many labels"
    )
    settings: dict[str, Any] | None = Field(None, description="of all folds")
    finished: str | None = Field(None, description="when the report was made, ISO 8601 with the time zone")

    @model_validator(mode="after")
    def _fits_together(self) -> FoldsReport:
        if len(self.fold) != self.folds:
            raise ValueError(f"folds = {self.folds}: there are {len(self.fold)} in `fold`")
        scores = self.class_accuracy or self.label_precision
        if scores is not None and self.class_images is not None and scores.keys() != self.class_images.keys():
            raise ValueError("class_images: not of the classes that have scores")
        return self

    @property
    def class_scores(self) -> ClassScores | None:
        """The score and the number of images of each class; None if they were not recorded, or do not fit together."""
        return ClassScores.of(self.class_accuracy or self.label_precision, self.class_images)

    def agrees_with(self, expected: FoldsReport) -> bool:
        """Returns whether this is a report on the results that another one is of, whichever version wrote it.

        Args:
            expected: the part of the report that follows from the folds' results.
        """
        if expected.spread.pooled is not None and self.confusion is None:
            return False
        own = {"version", "confused", "confusion", "settings", "finished"}  # do not follow from the results alone
        if expected.class_accuracy is None:  # it was computed from predictions.csv then
            own.add("class_accuracy")
        later = LATER if self.version == 1 else frozenset()
        return _alike(self.model_dump(exclude=own), expected.model_dump(exclude=own), later)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as `folds.json` holds it."""
        values: dict[str, Any] = {}
        for key, value in self.model_dump(mode="json").items():
            if key == "spread":
                values |= value
            elif key == "fold":
                values[key] = [_with_metrics(fold, self.metric, self.selecting) for fold in value]
            elif value is not None or key not in OMITTED:
                values[key] = value
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FoldsReport:
        """Reads a report from `to_json`, or one that an older version of the code wrote.

        Raises:
            NewerVersion: the report has a newer version.
            UserError: a value is missing or wrong.
        """
        values = finite(dict(values))
        check_version(values, VERSION)
        metric, selecting = metrics_in(values)
        folds = values.get("fold")
        if isinstance(folds, list):
            folds = [_with_scores(fold, metric, selecting) if isinstance(fold, dict) else fold for fold in folds]
        spread = {key: values[key] for key in Spread.model_fields if key in values}
        return cls.checked({"version": 1, **values, "spread": spread, "fold": folds})


def _with_metrics(fold: dict[str, Any], metric: str, selecting: str) -> dict[str, Any]:
    names = {"test_score": f"test_{metric}", "val_score": f"val_{selecting}"}
    return {names.get(key, key): value for key, value in fold.items()}


def _with_scores(fold: dict[str, Any], metric: str, selecting: str) -> dict[str, Any]:
    scores = {"test_score": f"test_{metric}", "val_score": f"val_{selecting}"}
    return {**fold, **{name: fold[key] for name, key in scores.items() if key in fold}}


def _alike(written: Any, wanted: Any, later: frozenset[str]) -> bool:
    """Returns whether two values are equal up to rounding; what dictionaries have under a key in `later` may differ."""
    if isinstance(written, dict) and isinstance(wanted, dict):
        return written.keys() == wanted.keys() and all(
            key in later or _alike(written[key], wanted[key], later) for key in written
        )
    if isinstance(written, list | tuple) and isinstance(wanted, list | tuple):
        return len(written) == len(wanted) and all(_alike(one, other, later) for one, other in zip(written, wanted))
    if isinstance(written, float) and isinstance(wanted, float):
        return math.isclose(written, wanted, rel_tol=1e-9, abs_tol=1e-12)
    return bool(written == wanted)
