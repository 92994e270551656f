"""The settings of a run: types, ranges, defaults, descriptions, and the JSON schema made from them.

`RunSettings` is the whole of a settings file. Sections that belong to data and models are defined beside their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.data import DATASETS, AugmentSettings, SplitSettings
from engine.settings.distill import DistillSettings, TeacherName
from engine.settings.types import FreeKey
from models.registry import MODELS
from models.settings import ModelSettings, Settings, nearest
from models.settings.finetune import FinetuneSettings


def one_of(table: Mapping[str, tuple[type[Settings], Any]]) -> Any:
    """Returns the type of a section whose `name` chooses one of the settings classes in `table`."""
    classes = tuple(cls for cls, _ in table.values())
    return classes[0] if len(classes) == 1 else Annotated[Union[classes], Field(discriminator="name")]  # noqa: UP007


if TYPE_CHECKING:  # a type checker cannot follow unions that are made when the module is imported
    Model: TypeAlias = ModelSettings
    Dataset: TypeAlias = Any
else:
    Model, Dataset = one_of(MODELS), one_of(DATASETS)


Beta = Annotated[float, Field(ge=0, lt=1)]


MOST_WEIGHT = 1_000_000
RANGE = f"greater than 0 and at most {MOST_WEIGHT}"


def _weights(value: Any) -> Any:
    """Describes what is wrong with weights of classes in one sentence, in place of one for each form they can have."""
    if isinstance(value, Mapping):
        for name, weight in value.items():
            if not _is_weight(weight):
                raise ValueError(f"{name} = {weight!r}: must be a number {RANGE}")
    elif isinstance(value, list):
        if not all(map(_is_weight, value)):
            raise ValueError(f"weights must be numbers {RANGE}")
    elif value not in ("none", "balanced"):
        raise ValueError("use none, balanced, {name: weight}, or a list of weights in the order of the classes")
    return value


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_WEIGHT


Weight = Annotated[float, Field(le=MOST_WEIGHT)]
ClassWeights = Annotated[Literal["none", "balanced"] | dict[FreeKey, Weight] | list[Weight], BeforeValidator(_weights)]


class TrainSettings(Settings):
    """Optimisation: duration, optimizer, learning rate schedule, precision."""

    epochs: int = Field(10, ge=1, le=10**9, description="number of passes over the training images")
    steps: int | None = Field(None, ge=1, le=10**9, description="number of optimizer steps, instead of epochs")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="images per micro-batch")
    accumulate: int = Field(
        1, ge=1, le=1_000_000, description="micro-batches whose gradients are accumulated for one optimizer step"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with momentum")
    lr: float = Field(
        1e-3,
        gt=0,
        le=1000,
        description="learning rate after the warm-up; default: 2e-4 for finetune.mode lora, 5e-5 for full and for "
        "model.weights without finetune, else 1e-3",
    )
    lr_batch: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="images per optimizer step that lr was tuned for; a run with another number is warned",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=1000, description="weight decay; not applied to norms, biases and tokens"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    betas: list[Beta] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="decay rates of adamw's moments: two numbers in [0, 1)"
    )
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="decay of the learning rate, step by step, after the warm-up"
    )
    warmup_epochs: float = Field(
        0.0, ge=0, le=1_000_000, description="epochs over which the learning rate rises from 0; at most epochs"
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of all steps over which the learning rate rises, instead of warmup_epochs"
    )
    min_lr: float = Field(0.0, ge=0, le=1000, description="learning rate at the end of training; less than lr")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target probability that is spread over all classes"
    )
    clip_norm: float | None = Field(1.0, gt=0, le=1e12, description="maximum norm of the gradient; null: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on devices that compute in it, else fp32"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the moving average of the weights; 0: no average"
    )
    class_weights: ClassWeights = Field(
        "none",
        description="weights of classes in the training loss; balanced: inverse to the classes' numbers of training "
        "images; {name: weight}, 1 for the others; or a list in the order of the classes",
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="uniform: every image once in an epoch; balanced: as many draws, an equal number from each class",
    )
    select: str | None = Field(
        None,
        description="metric on the validation images by which the best epoch is selected: top1, balanced_accuracy, or "
        "for many labels map, f1; null: top1 or map",
    )
    teacher: TeacherName | None = Field(
        None,
        description="what the run learns from beside its labels: self (the model with model.weights before training, "
        "without merging), a run folder, timm:NAME or torchvision:NAME",
    )
    distill: DistillSettings = Field(DistillSettings(), description="what it learns from its teacher")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes, ddp: each has the whole model; fsdp: each has a part of every parameter, "
        "for models that do not fit",
    )
    sync_batchnorm: bool = Field(
        False, description="whether BatchNorm normalises by the images of all processes, not of its own"
    )
    checkpoint_activations: bool = Field(
        False, description="whether blocks compute their activations again in the backward pass, which saves memory"
    )

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.warmup_epochs and (self.warmup_ratio or self.steps):
            other = "warmup_ratio" if self.warmup_ratio else "steps"
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: not beside train.{other}; give warmup_ratio alone")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: must be at most train.epochs = {self.epochs}")
        if self.class_weights != "none" and self.sampling == "balanced":
            raise ValueError("class_weights: not beside train.sampling = balanced, which corrects the same; use one")
        if self.teacher is None and self.distill != DistillSettings():
            raise ValueError("distill: there is no teacher; give train.teacher, or omit it")
        if self.min_lr >= self.lr:
            raise ValueError(f"min_lr = {self.min_lr}: must be less than train.lr = {self.lr}")
        return self


class CheckpointSettings(Settings):
    """How often the run is saved, and how many of its checkpoints are kept."""

    every_steps: int = Field(
        0, ge=0, le=10**9, description="optimizer steps between checkpoints; 0: only at the end of each epoch"
    )
    keep: int = Field(
        2, ge=1, le=100, description="checkpoints to resume from that are kept: last.pt, last-1.pt before it, ..."
    )


TrackerName = Literal["tensorboard", "mlflow", "wandb"]  # see engine.runs.trackers


class LogSettings(Settings):
    """What is logged during training."""

    every_steps: int = Field(
        20, ge=1, le=10**9, description="optimizer steps between lines of metrics.jsonl and of the trackers"
    )
    trackers: list[TrackerName] = Field(
        ["tensorboard"],
        description="what gets curves, pictures and settings beside metrics.jsonl: tensorboard, mlflow, wandb",
    )
    images: int = Field(
        16,
        ge=0,
        le=10_000,
        description="number of most confident mistakes that each validation, and the test, draws; 0: none",
    )


class RunSettings(Settings):
    """All settings of a run."""

    name: str = Field(
        pattern=r"^[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*$",
        description="the run folder's name under `out`: no slash, no dot or blank at its start",
    )
    out: str = Field("runs", pattern=r"^[^\x00]+$", description="the folder in which run folders are created")
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of all random numbers; the test split has its own, split.test_seed"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="number of CPU threads; null: chosen by torch")
    model: Model = Field(description="the network, chosen by name")
    data: Dataset = Field(description="the images, chosen by name")
    split: SplitSettings = Field(
        SplitSettings(), description="test and validation images, folds, and the part that trains"
    )
    augment: AugmentSettings = Field(
        AugmentSettings(),
        description="changes to training images; default: light with finetune or model.weights, but none for mode head",
    )
    train: TrainSettings = Field(TrainSettings(), description="optimisation")
    finetune: FinetuneSettings | None = Field(
        None, description="which parameters are trained; null: all of them, from scratch or from weights"
    )
    checkpoint: CheckpointSettings = Field(
        CheckpointSettings(), description="how often the run is saved, and how much of that is kept"
    )
    log: LogSettings = Field(LogSettings(), description="what is logged during training")

    def with_classes(self, count: int | None) -> RunSettings:
        """Returns the settings with `model.num_classes` filled in, where it is not given."""
        if count is None or self.model.num_classes is not None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"num_classes": count})})

    @field_validator("seed", mode="before")
    @classmethod
    def _one_seed(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("a run has one seed; tools/study.py trains a run for each, as `seeds:` of a plan")
        return value

    @model_validator(mode="after")
    def _fits_labels(self) -> RunSettings:
        task, select = self.data.task, self.train.select
        if select is not None and select not in task.titles:
            raise ValueError(
                f"train.select = {select!r}: not a metric of these labels; {nearest(select, [*task.titles])}"
            )
        if (
            self.train.teacher is not None
            and self.train.distill.tokens
            and getattr(self.finetune, "mode", "") == "head"
        ):
            raise ValueError(
                f"train.distill.tokens = {self.train.distill.tokens:g}: only the head learns (finetune.mode = 'head'), "
                "which makes no tokens; set it to 0"
            )
        if self.train.sampling == "balanced" and not task.one_class:
            raise ValueError(
                "train.sampling = 'balanced': only where each image has one class; use train.class_weights=balanced"
            )
        return self

    @property
    def title(self) -> str:
        """The run's name, with its fold."""
        return self.name if self.split.fold is None else f"{self.name}, fold {self.split.fold} of {self.split.folds}"


def schema() -> dict[str, Any]:
    """Returns a JSON schema of settings files, for editors. No key is required, since it may come from `base:`."""
    base = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "file or list of files to inherit from, relative to this one; later files override earlier ones",
    }
    loose = _loosen(RunSettings.model_json_schema())
    properties = {"base": base, **loose["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **loose, "properties": properties}


def _loosen(node: Any) -> Any:
    """Removes `required` and turns `oneOf` into `anyOf`, since the name that chooses may come from `base:`."""
    if isinstance(node, list):
        return [_loosen(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    kept = {key: entry for key, entry in node.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _loosen(entry) for key, entry in kept.items()}
