"""The forms of `merge.r` and `merge.keep`: how many tokens the blocks remove."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ..settings import Settings

MOST = 2**31 - 1  # tokens


def _once(blocks: list[int] | None) -> list[int] | None:
    """Raises ValueError if a list names a block twice."""
    if blocks is not None and (twice := sorted({block for block in blocks if blocks.count(block) > 1})):
        raise ValueError(f"block {twice[0]} is listed twice; list each block once")
    return blocks


Blocks = Annotated[list[Annotated[int, Field(le=1000)]], AfterValidator(_once)]  # counted from 1


class LinearSettings(Settings):
    """r changes linearly from the first block to the last."""

    first: int = Field(ge=0, le=MOST, description="tokens that the first block removes")
    last: int = Field(ge=0, le=MOST, description="tokens that the last block removes")


class AnySettings(Settings):
    """r is drawn anew for every training step, so that one model can be used with every budget in this range."""

    train: list[Annotated[int, Field(le=MOST)]] = Field(
        description="the smallest and the largest r of each block", json_schema_extra={"minItems": 2, "maxItems": 2}
    )

    @model_validator(mode="after")
    def _ordered(self) -> AnySettings:
        if len(self.train) != 2:
            raise ValueError(f"train = {self.train}: must be two numbers, the least and the most r")
        if not 0 <= self.train[0] <= self.train[1]:
            raise ValueError(f"train = {self.train}: must be the least and the most r, neither negative")
        return self


class KeepSettings(Settings):
    """Some blocks keep a share of their patches (EViT; Haurum et al., 2023: blocks 4, 7 and 10)."""

    rate: float = Field(gt=0, le=1, description="share of the patches that each of the blocks keeps, rounded up")
    blocks: Blocks = Field([4, 7, 10], min_length=1, description="the blocks that remove patches, counted from 1")


def _written_as(r: Any) -> str | None:
    """The form of r that a value is meant to be, so that an error message is about that form alone."""
    if isinstance(r, dict):
        ways = {SECTIONS[key] for key in r if key in SECTIONS}
        return ways.pop() if len(ways) == 1 else None
    kinds = {int: "number", list: "list", LinearSettings: "linear", AnySettings: "any"}
    return kinds.get(type(r))


SECTIONS = {"first": "linear", "last": "linear", "train": "any"}  # key of a section `r: {...}` -> form of r
Removed = Annotated[
    Annotated[int, Field(le=MOST), Tag("number")]
    | Annotated[list[Annotated[int, Field(le=MOST)]], Tag("list")]
    | Annotated[LinearSettings, Tag("linear")]
    | Annotated[AnySettings, Tag("any")],
    Discriminator(
        _written_as,
        custom_error_type="merge_r",
        custom_error_message="must be a whole number, a list with one for each block, {first: n, last: n} "
        "or {train: [least, most]}",
    ),
]
