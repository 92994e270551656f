"""A row of a comparison: what a model with one way of merging predicted for every image, and what it costs.

Each row is a file of its own, written as soon as the row is complete, so that a comparison that was stopped goes on
where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from engine.cost.images import ImageCosts
from engine.files import write_text_atomic
from engine.runs.records.record import Amount, Count, Record
from models.settings import UserError

VERSION = 1  # of the record


class GmacsSpread(Record):
    """How the cost differs from image to image, where the number of tokens depends on the image; billions."""

    images: Count = Field(description="number of images")
    std: Amount | None = Field(description="sample standard deviation; None: of a single image")
    least: Amount = Field(description="of the cheapest image")
    most: Amount = Field(description="of the most expensive image")
    tokens: list[Amount] = Field(description="mean number of tokens that leave each block, prefix tokens included")


class ZeroshotRow(Record):
    """The predictions and the cost of one row."""

    version: int = Field(VERSION, description="of this record")
    key: str = Field(description="fingerprint of everything that decides the predictions")
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
    predicted: list[Count] = Field(description="the predicted class of each image, in the order of the images")
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

    @property
    def predictions(self) -> np.ndarray:
        """The predicted classes, int64 (N,)."""
        return np.asarray(self.predicted, np.int64)


def row_file(folder: Path, key: str) -> Path:
    """Returns the file of a row in the folder of a comparison."""
    return folder / "rows" / f"{key[:16]}.json"


def write_row(folder: Path, row: ZeroshotRow) -> None:
    """Writes a row atomically: a line for each field."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in row.model_dump(mode="json").items()]
    write_text_atomic(row_file(folder, row.key), "{\n" + ",\n".join(lines) + "\n}\n")


def read_row(folder: Path, key: str) -> ZeroshotRow | None:
    """Returns a row that was evaluated before; None if there is none.

    Raises:
        UserError: its file is damaged.
    """
    file = row_file(folder, key)
    try:
        row = ZeroshotRow.checked(json.loads(file.read_text()))
        if row.key != key:
            raise UserError("key: of another row")
        return row
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"{file}: damaged ({error}); delete it, and the row is evaluated again") from None
