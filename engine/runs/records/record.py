"""What the records of a run have in common: how they are read, the types of their values, and what all of them tell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from engine.tasks import TASKS
from models.settings import UserError

R = TypeVar("R", bound="Record")


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
Interval = Annotated[tuple[Fraction, Fraction], Field(strict=False)]  # a list in JSON


class Record(BaseModel):
    """Values that were read from JSON and checked. Accuracies and shares are fractions; None means not measured, or not
    recorded."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), strict=True)

    @classmethod
    def checked(cls: type[R], values: Mapping[str, Any]) -> R:
        """Returns the record of these values.

        Raises:
            UserError: a value is missing or wrong, in one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            given = f", not {first['input']!r}"[:60] if where and first["type"] != "missing" else ""
            raise UserError(f"{where}{': ' if where else ''}{message[:1].lower()}{message[1:]}{given}") from None


class RunRecord(Record):
    """What was trained, and how: the same for all folds."""

    name: str = Field(description="the run's name")
    model: str = Field(description="the network's name, such as hybrid or timm:resnet18")
    data: str = Field(description="the dataset's name")
    seed: int = Field(description="of everything random")
    metric: str = Field("top1", description="name of the main metric")
    selected_by: str | None = Field(
        None, description="the metric that selects the best weights on the validation images; None: the main metric"
    )
    method: str = Field("from scratch", description="how the weights were trained: from scratch, full, head, lora, ...")
    epochs: Count = Field(description="passes over the training images")
    params: Count = Field(description="number of the model's parameters")
    trained_params: Count = Field(description="number of parameters that were trained")
    trained_share: Fraction = Field(1.0, description="trained parameters as a fraction of all, adapters included")
    gmacs: Amount | None = Field(description="multiply-adds for one image, billions; None: they cannot be counted")
    precision: str | None = Field(None, description="what the model computed in: fp32 or bf16")
    device: str | None = Field(None, description="name of the processor or accelerator")
    versions: dict[str, str | None] | None = Field(None, description="of Python and the libraries")
    commit: str | None = Field(None, description="git commit of the code that trained")

    @property
    def selecting(self) -> str:
        """The metric that selects the best weights."""
        return self.selected_by or self.metric


def check_version(values: Mapping[str, Any], newest: int) -> None:
    """Checks that this code can read a record.

    Raises:
        NewerVersion: the record has a newer version.
    """
    version = values.get("version", 1)
    if type(version) is not int or version > newest:
        raise NewerVersion(f"version = {version!r}: this code reads versions 1 to {newest}; update HybridMerge")


def metrics_in(values: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the main metric of a record, and the metric that selects the best weights.

    Raises:
        UserError: no task has such a metric.
    """
    metric = values.get("metric", "top1")
    selecting = values.get("selected_by") or metric
    known = {name for task in TASKS.values() for name in task.titles}
    for key, name in (("metric", metric), ("selected_by", selecting)):
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{key} = {name!r}: unknown; correct it")
    return metric, selecting


def read_record(file: Path, parse: Callable[[Mapping[str, Any]], R], again: str) -> R | None:
    """Reads a record from its file; returns None if there is no such file.

    Args:
        file: the JSON.
        parse: makes the record of its values.
        again: what to do after the file is deleted.

    Raises:
        NewerVersion: a newer version wrote it.
        UserError: it is damaged.
    """
    if not os.path.lexists(file):
        return None
    try:
        # Reading a pipe would wait for ever.
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{file}: cannot be read; delete it and {again}")
    try:
        return parse(values)
    except NewerVersion as error:
        raise NewerVersion(f"{file}: {error}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}; or delete it and {again}") from None
