"""A row of a comparison: what a model with one way of merging gave for every image, and what it costs.

Each row is a file of its own, written as soon as the row is complete, so that a comparison that was stopped goes on
where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from engine.cost.images import ImageCosts
from engine.files import write_text_atomic
from engine.runs.records.record import Amount, Count, Record
from engine.wording import NOT_COUNTED
from models.settings import UserError

VERSION = 1  # of the record
R = TypeVar("R", bound="Row")


class GmacsSpread(Record):
    """How the cost differs from image to image, where the number of tokens depends on the image; billions."""

    images: Count = Field(description="number of images")
    std: Amount | None = Field(description="sample standard deviation; None: of a single image")
    least: Amount = Field(description="of the cheapest image")
    most: Amount = Field(description="of the most expensive image")
    tokens: list[Amount] = Field(description="mean number of tokens that leave each block, prefix tokens included")


def spread_of(costs: ImageCosts | None) -> GmacsSpread | None:
    """Returns what a row records of the costs of single images besides their mean."""
    return None if costs is None else GmacsSpread(**{k: v for k, v in costs._asdict().items() if k != "mean"})


class Row(Record):
    """What the rows of all comparisons record. Each comparison adds what it measured."""

    version: int = Field(VERSION, description="of this record")
    key: str = Field(description="fingerprint of everything that decides what is measured")
    name: str = Field(description="the row's name")
    method: str | None = Field(description="merging method; None: not merged")
    budget: str | None = Field(description="how much is merged, in words; None: not merged")
    merge: dict[str, Any] | None = Field(description="the merge: section of the row")
    removed: list[Count] = Field(description="patches that each block removes; empty where it depends on the image")
    gmacs: Amount | None = Field(
        description="multiply-adds of one image, billions, or the mean where they depend on the image; None: they "
        "cannot be counted"
    )
    gmacs_spread: GmacsSpread | None = Field(None, description="where the multiply-adds depend on the image")
    params: Count = Field(description="number of the model's parameters")
    seconds: Amount = Field(description="duration of the evaluation, which is no benchmark")
    device: str = Field("", description="what computed it")
    versions: dict[str, str] = Field({}, description="versions of libraries")
    code: str = Field("", description="fingerprint of the code that merges")
    commit: str | None = Field(description="git commit of the code")

    @property
    def costs(self) -> ImageCosts | None:
        """What single images cost, where it depends on the image."""
        if self.gmacs is None or self.gmacs_spread is None:
            return None
        return ImageCosts(mean=self.gmacs, **self.gmacs_spread.model_dump())


class ZeroshotRow(Row):
    """The predictions and the cost of one row."""

    predicted: list[Count] = Field(description="the predicted class of each image, in the order of the images")

    @property
    def predictions(self) -> np.ndarray:
        """The predicted classes, int64 (N,)."""
        return np.asarray(self.predicted, np.int64)


def cost_in_words(row: Row) -> str:
    """Returns the GMACs of a row as text: of one image, or the mean of all with its spread."""
    if row.costs is not None:
        return row.costs.in_words()
    return NOT_COUNTED if row.gmacs is None else f"{row.gmacs:.4f} GMACs"


def row_file(folder: Path, key: str) -> Path:
    """Returns the file of a row in the folder of a comparison."""
    return folder / "rows" / f"{key[:16]}.json"


def write_row(folder: Path, row: Row) -> None:
    """Writes a row atomically: a line for each field."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in row.model_dump(mode="json").items()]
    write_text_atomic(row_file(folder, row.key), "{\n" + ",\n".join(lines) + "\n}\n")


def read_row(folder: Path, key: str, kind: type[R]) -> R | None:
    """Returns a row that was evaluated before; None if there is none.

    Args:
        folder: of the comparison.
        key: the row's fingerprint.
        kind: the class of its record.

    Raises:
        UserError: its file is damaged.
    """
    file = row_file(folder, key)
    try:
        row = kind.checked(json.loads(file.read_text()))
        if row.key != key:
            raise UserError("key: of another row")
        return row
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"{file}: damaged ({error}); delete it, and the row is evaluated again") from None
