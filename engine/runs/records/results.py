"""`Results`: the results of training and testing one model, stored as `results.json` in its run folder.

Each field is a value with its unit, and comparisons are tables of these fields. A new field needs a default that is
correct for runs written before it existed, and is filled in by `engine.train.final_test`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from engine.files import finite
from engine.runs.records.class_scores import ClassScores
from engine.runs.records.record import SLACK, Amount, Count, Fraction, Interval, RunRecord, check_version, metrics_in
from models.settings import UserError

# Fields that are left out of the JSON where they are None, because another kind of label has them, or other runs.
OMITTED = ("no_test", "selected_by", "thresholds", "class_accuracy", "label_precision", "class_images")
VERSION = 2  # of the record: 1 has no `version` and may lack every field that has a default


class Results(RunRecord):
    """The results of one run. Accuracies and shares are fractions; None means not measured, or not recorded.

    In JSON the metrics have keys of their own: `test_metrics` becomes `test_top1`, `test_top5`, ..., and `val_score`
    becomes `val_top1`, or whatever `metric` names.
    """

    version: int = Field(VERSION, description="of this record")
    fold: Count | None = Field(None, description="the fold that tested the run; None without k-fold")
    test_images: Count = Field(description="number of test images; 0 if there are none")
    no_test: str | None = Field(None, description="why there are no test images, such as split.test = 0")
    test_loss: Amount | None = Field(None, description="mean cross-entropy on the test images")
    test_metrics: dict[str, Fraction | None] = Field(description="metrics on the test images by name, fractions")
    test_interval: Interval | None = Field(None, description="95 % interval of the accuracy, fractions")
    val_score: Fraction | None = Field(
        None, description="on the validation images, the best value of the metric that selects the weights, a fraction"
    )
    thresholds: dict[str, Fraction] | None = Field(
        None, description="for many labels: the probability above which each label is predicted"
    )
    val_images: Count | None = Field(None, description="number of validation images")
    best_step: Count = Field(description="optimizer step of the best weights, which are the ones tested")
    steps: Count = Field(description="optimizer steps of the whole training")
    train_images: Count = Field(description="number of training images")
    data_sha256: str | None = Field(None, description="fingerprint of the run's images, labels and split")
    saved_mib: Amount | None = Field(None, description="size of best.pt, MiB")
    target_gmacs: Amount | None = Field(None, description="the multiply-adds that merging was asked for, billions")
    activations: Count | None = Field(None, description="number of values that the layers output for one image")
    tokens: list[Count] = Field(default=[], description="tokens after each block; empty for models without tokens")
    removed: list[Count] = Field(default=[], description="tokens that each block merges away")
    seconds: Amount = Field(description="training time without validation and saving, seconds")
    images_per_second: Amount = Field(description="training images per second")
    peak_memory_mib: Amount = Field(description="peak memory of the process or of the accelerator, MiB")
    classes_of: Literal["test", "val"] = Field(
        "test", description="the images of the next fields: validation images where there are no test images"
    )
    class_accuracy: dict[str, Fraction | None] | None = Field(
        None, description="accuracy on each class's images, fractions; None for many labels"
    )
    label_precision: dict[str, Fraction | None] | None = Field(
        None, description="average precision of each label, fractions; None for one label"
    )
    class_images: dict[str, Count] | None = Field(None, description="number of images of each class or label")
    worst_class: str | None = Field(None, description="the class, or label, with the lowest score")
    worst_class_score: Fraction | None = Field(None, description="its accuracy, or average precision, a fraction")
    worst_class_images: Count | None = Field(None, description="number of its images")
    train_class_images: dict[str, Count] | None = Field(None, description="number of training images of each class")
    finished: str | None = Field(None, description="when the run ended, ISO 8601 with the time zone")

    @model_validator(mode="after")
    def _fits_together(self) -> Results:
        scores = self.class_accuracy or self.label_precision
        if scores is not None and self.class_images is not None and scores.keys() != self.class_images.keys():
            raise ValueError("class_images: not of the classes that have scores")
        if self.test_interval is not None and self.test_score is not None:
            low, high = self.test_interval
            if self.test_score < low - SLACK or self.test_score > high + SLACK:
                raise ValueError(f"test_interval: does not hold test_{self.metric} = {self.test_score}")
        return self

    @property
    def class_scores(self) -> ClassScores | None:
        """The score and the number of images of each class; None if they were not recorded, or do not fit together."""
        return ClassScores.of(self.class_accuracy or self.label_precision, self.class_images)

    @property
    def test_score(self) -> float | None:
        """The main metric on the test images, a fraction; None without test images."""
        return self.test_metrics.get(self.metric)

    def value(self, name: str) -> Any:
        """Returns a field or property by name, or a metric by its key in JSON, such as test_top5."""
        if name.startswith("test_") and not hasattr(self, name):
            return self.test_metrics.get(name.removeprefix("test_"))
        return getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as `results.json` holds it."""
        values: dict[str, Any] = {}
        for key, value in self.model_dump(mode="json").items():
            if key == "test_metrics":
                values |= {f"test_{name}": score for name, score in value.items()}
            elif key == "val_score":
                values[f"val_{self.selecting}"] = value
            elif value is not None or key not in OMITTED:
                values[key] = value
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Results:
        """Reads a record from `to_json`, or one that an older version of the code wrote.

        Raises:
            NewerVersion: the record has a newer version.
            UserError: a field is missing or has the wrong type.
        """
        values = finite(dict(values))
        check_version(values, VERSION)
        metric, selecting = metrics_in(values)
        scores = {
            key.removeprefix("test_"): value
            for key, value in values.items()
            if key.startswith("test_") and key not in cls.model_fields
        }
        if values.get("test_images") and scores.get(metric) is None:
            raise UserError(f"test_{metric} = null: not measured, although there are test images; correct it")
        older: dict[str, Any] = {"trained_params": values.get("params")}  # before fine-tuning all of them were trained
        by_class = values.get("class_accuracy")
        known = {} if not isinstance(by_class, dict) else {k: v for k, v in by_class.items() if type(v) in (int, float)}
        if known and "worst_class" not in values:  # before it was recorded
            worst = min(known, key=known.__getitem__)
            older |= {"worst_class": worst, "worst_class_score": known[worst]}
            scores.setdefault("balanced_accuracy", sum(known.values()) / len(known))
        scored = {"test_metrics": scores, "val_score": values.get(f"val_{selecting}")}
        return cls.checked({**older, **values, **scored, "version": VERSION})
