"""`Results`: the results of training and testing one model, stored as `results.json` in its run folder.

Each field is a value with its unit, and comparisons are tables of these fields. A new field needs a default that is
correct for runs written before it existed, and is filled in by `engine.train.final_test`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.files import finite
from engine.runs.class_scores import ClassScores
from engine.tasks import TASKS
from models.settings import UserError

# Fields that are left out of the JSON where they are None, because another kind of label has them, or other runs.
OMITTED = ("no_test", "selected_by", "thresholds", "class_accuracy", "label_precision", "class_images")
VERSION = 2  # of the record: 1 has no `version` and may lack every field that has a default


class NewerVersion(UserError):
    """A record that a newer version of the code wrote: it is not damaged, and must not be deleted."""


def _fraction(value: float) -> float:
    if value < -SLACK or value > 1 + SLACK:  # nan is allowed here, and null in JSON
        raise ValueError("must be a fraction, from 0 to 1")
    return value


def _amount(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


SLACK = 1e-3  # metrics are computed in float32
Fraction = Annotated[float, AfterValidator(_fraction)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, AfterValidator(_amount)]


class Results(BaseModel):
    """The results of one run. Accuracies and shares are fractions; None means not measured, or not recorded.

    In JSON the metrics have keys of their own: `test_metrics` becomes `test_top1`, `test_top5`, ..., and `val_score`
    becomes `val_top1`, or whatever `metric` names.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), strict=True)

    version: int = Field(VERSION, description="of this record")
    name: str = Field(description="the run's name")
    model: str = Field(description="the network's name, such as hybrid or timm:resnet18")
    data: str = Field(description="the dataset's name")
    seed: int = Field(description="of everything random")
    metric: str = Field("top1", description="name of the main metric, by which validation chooses the best weights")
    method: str = Field("from scratch", description="how the weights were trained: from scratch, full, head, lora, ...")
    fold: Count | None = Field(None, description="the fold that tested the run; None without k-fold")
    test_images: Count = Field(description="number of test images; 0 if there are none")
    no_test: str | None = Field(None, description="why there are no test images, such as split.test = 0")
    test_loss: Amount | None = Field(None, description="mean cross-entropy on the test images")
    test_metrics: dict[str, Fraction | None] = Field(description="metrics on the test images by name, fractions")
    test_interval: tuple[Fraction, Fraction] | None = Field(
        None, strict=False, description="95 % interval of the accuracy, fractions"
    )
    val_score: Fraction | None = Field(
        None, description="on the validation images, the best value of the metric that selects the weights, a fraction"
    )
    selected_by: str | None = Field(None, description="that metric; None: the main metric")
    thresholds: dict[str, Fraction] | None = Field(
        None, description="for many labels: the probability above which each label is predicted"
    )
    val_images: Count | None = Field(None, description="number of validation images")
    best_step: Count = Field(description="optimizer step of the best weights, which are the ones tested")
    steps: Count = Field(description="optimizer steps of the whole training")
    epochs: Count = Field(description="passes over the training images")
    train_images: Count = Field(description="number of training images")
    data_sha256: str | None = Field(None, description="fingerprint of the run's images, labels and split")
    params: Count = Field(description="number of the model's parameters")
    trained_params: Count = Field(description="number of parameters that were trained")
    trained_share: Fraction = Field(1.0, description="trained parameters as a fraction of all, adapters included")
    saved_mib: Amount | None = Field(None, description="size of best.pt, MiB")
    gmacs: Amount | None = Field(description="multiply-adds for one image, billions; None: they cannot be counted")
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
    precision: str | None = Field(None, description="what the model computed in: fp32 or bf16")
    device: str | None = Field(None, description="name of the processor or accelerator")
    versions: dict[str, str | None] | None = Field(None, description="of Python and the libraries")
    finished: str | None = Field(None, description="when the run ended, ISO 8601 with the time zone")
    commit: str | None = Field(None, description="git commit of the code that trained")

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
        scores, images = self.class_accuracy or self.label_precision or {}, self.class_images or {}
        fit = scores.keys() == images.keys() and any(images.values())
        if not fit or any((scores[name] is not None) != (images[name] > 0) for name in scores):
            return None
        return ClassScores(list(scores.values()), [images[name] for name in scores])

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
                values[f"val_{self.selected_by or self.metric}"] = value
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
        version = values.get("version", 1)
        if type(version) is not int or version > VERSION:
            raise NewerVersion(f"version = {version!r}: this code reads versions 1 to {VERSION}; update HybridMerge")
        metric = values.get("metric", "top1")
        scores = {
            key.removeprefix("test_"): value
            for key, value in values.items()
            if key.startswith("test_") and key not in cls.model_fields
        }
        known_metrics = {name for task in TASKS.values() for name in task.titles}
        for key, name in (("metric", metric), ("selected_by", values.get("selected_by") or metric)):
            if not isinstance(name, str) or name not in known_metrics:
                raise UserError(f"{key} = {name!r}: unknown; correct it")
        if values.get("test_images") and scores.get(metric) is None:
            raise UserError(f"test_{metric} = null: not measured, although there are test images; correct it")
        older: dict[str, Any] = {"trained_params": values.get("params")}  # before fine-tuning all of them were trained
        by_class = values.get("class_accuracy")
        known = {} if not isinstance(by_class, dict) else {k: v for k, v in by_class.items() if type(v) in (int, float)}
        if known and "worst_class" not in values:  # before it was recorded
            worst = min(known, key=known.__getitem__)
            older |= {"worst_class": worst, "worst_class_score": known[worst]}
            scores.setdefault("balanced_accuracy", sum(known.values()) / len(known))
        try:
            return cls.model_validate(
                {
                    **older,
                    **values,
                    "version": VERSION,
                    "test_metrics": scores,
                    "val_score": values.get(f"val_{values.get('selected_by') or metric}"),
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            given = f", not {first['input']!r}"[:60] if where and first["type"] != "missing" else ""
            raise UserError(f"{where}{': ' if where else ''}{message[:1].lower()}{message[1:]}{given}") from None
