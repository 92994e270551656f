"""What a run's settings are: their types, ranges, defaults and descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import Field, model_validator

from engine.data import DATASETS, AugmentSettings, SplitSettings
from models.finetune import FinetuneSettings
from models.registry import MODELS
from models.settings import ModelSettings, Settings


def one_of(table: Mapping[str, tuple[type[Settings], Any]]) -> Any:
    """The type of a section whose `name` chooses one of the table's settings classes."""
    classes = tuple(cls for cls, _ in table.values())
    return classes[0] if len(classes) == 1 else Annotated[Union[classes], Field(discriminator="name")]  # noqa: UP007


if TYPE_CHECKING:  # a type checker cannot follow unions that are made when the module is imported
    Model: TypeAlias = ModelSettings
    Dataset: TypeAlias = Any
else:
    Model, Dataset = one_of(MODELS), one_of(DATASETS)


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(Settings):
    """How the weights are found."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="in place of epochs: optimizer steps")
    batch_size: int = Field(128, ge=1, description="images per micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    lr: float = Field(
        1e-3,
        gt=0,
        description="learning rate after the warm-up; default with finetune: 2e-4 for lora, 5e-5 for full, else 1e-3",
    )
    lr_batch: int | None = Field(None, ge=1, description="images per step that lr was chosen for; others are warned of")
    weight_decay: float = Field(0.05, ge=0, description="of weights; norms, biases and tokens have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description="of adamw: two, each in [0, 1)")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the learning rate falls, step by step")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the learning rate rises; at most epochs")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="in place of warmup_epochs: share of all steps")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end; less than lr")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: not clipped")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device has it")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average, per step; 0: none")

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.warmup_epochs and (self.warmup_ratio or self.steps):
            other = "warmup_ratio" if self.warmup_ratio else "steps"
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: not beside train.{other}; give warmup_ratio alone")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: must be at most train.epochs = {self.epochs}")
        if self.min_lr >= self.lr:
            raise ValueError(f"min_lr = {self.min_lr}: must be less than train.lr = {self.lr}")
        return self


class CheckpointSettings(Settings):
    """When the run is saved."""

    every_steps: int = Field(0, ge=0, description="optimizer steps between checkpoints; 0: at each epoch's end only")


class LogSettings(Settings):
    """What the run reports."""

    every_steps: int = Field(20, ge=1, description="optimizer steps between lines of metrics.jsonl and TensorBoard")
    images: int = Field(16, ge=0, description="pictures of the most confident mistakes, per validation; 0: none")


class RunSettings(Settings):
    """A whole run."""

    name: str = Field(
        pattern=r"^[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*$",
        description="the run folder's name under `out`: no slash, no dot or blank at its start",
    )
    out: str = Field("runs", pattern=r"^[^\x00]+$", description="the folder that run folders are made in")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of torch; null: torch decides")
    model: Model = Field(description="the network, chosen by name")
    data: Dataset = Field(description="the images, chosen by name")
    split: SplitSettings = Field(SplitSettings(), description="validation images, and the part that trains")
    augment: AugmentSettings = Field(AugmentSettings(), description="changes to training images")
    train: TrainSettings = Field(TrainSettings(), description="optimisation")
    finetune: FinetuneSettings | None = Field(None, description="what of the model learns; null: everything")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="saving")
    log: LogSettings = Field(LogSettings(), description="reporting")

    def with_classes(self, count: int | None) -> RunSettings:
        """Returns the settings with `model.num_classes` filled in, where it is not given."""
        if count is None or self.model.num_classes is not None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"num_classes": count})})

    @property
    def title(self) -> str:
        """The run's name, with its fold."""
        return self.name if self.split.fold is None else f"{self.name}, fold {self.split.fold} of {self.split.folds}"


def schema() -> dict[str, Any]:
    """A JSON schema of settings files, for editors. Nothing is required, because `base:` may bring it."""
    base = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "a file or files to inherit from, relative to this one; later ones win",
    }
    loose = _loosen(RunSettings.model_json_schema())
    properties = {"base": base, **loose["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **loose, "properties": properties}


def _loosen(node: Any) -> Any:
    """A JSON schema without `required`, and with `anyOf` for a choice by name, which may stand in the base file."""
    if isinstance(node, list):
        return [_loosen(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    kept = {key: entry for key, entry in node.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _loosen(entry) for key, entry in kept.items()}
