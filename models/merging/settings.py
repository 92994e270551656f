"""The `merge:` section of a model: which method, how many tokens, compared by what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..settings import Settings, UserError
from . import MERGERS
from .contract import Merger
from .facility_location import SELECTIONS
from .layer import METRICS
from .schedule import Plan

OPTIONS = ("kth", "prune", "neighbours", "form")  # options that not every method takes
BUDGETS = ("r", "keep", "target_gmacs", "target_ratio")  # ways to say how many tokens go: one of them


class LinearSettings(Settings):
    """r falls, or rises, evenly from the first block to the last."""

    first: int = Field(ge=0, description="tokens that the first block removes")
    last: int = Field(ge=0, description="tokens that the last block removes")


class AnySettings(Settings):
    """r is drawn anew for every training step, so that one model serves every budget in between."""

    train: list[int] = Field(
        description="the least and the most that each block removes", json_schema_extra={"minItems": 2, "maxItems": 2}
    )

    @model_validator(mode="after")
    def _ordered(self) -> AnySettings:
        if len(self.train) != 2:
            raise ValueError(f"train = {self.train}: must be two numbers, the least and the most r")
        if not 0 <= self.train[0] <= self.train[1]:
            raise ValueError(f"train = {self.train}: must be the least and the most r, neither negative")
        return self


class KeepSettings(Settings):
    """Chosen blocks keep a share of their patches (EViT; Haurum et al., 2023: blocks 4, 7 and 10)."""

    rate: float = Field(gt=0, le=1, description="share of the patches that each of the blocks keeps, rounded up")
    blocks: list[int] = Field([4, 7, 10], min_length=1, description="which blocks, the first is 1")

    @field_validator("blocks")
    @classmethod
    def _once(cls, blocks: list[int]) -> list[int]:
        if twice := sorted({block for block in blocks if blocks.count(block) > 1}):
            raise ValueError(f"block {twice[0]} stands there twice; name each block once")
        return blocks


def _written_as(r: Any) -> str | None:
    """Which way of writing r a value means to be, so that an error speaks of that one alone."""
    if isinstance(r, dict):
        ways = {SECTIONS[key] for key in r if key in SECTIONS}
        return ways.pop() if len(ways) == 1 else None
    kinds = {int: "number", list: "list", LinearSettings: "linear", AnySettings: "any"}
    return kinds.get(type(r))


SECTIONS = {"first": "linear", "last": "linear", "train": "any"}  # r as a section: its keys
Removed = Annotated[
    Annotated[int, Tag("number")]
    | Annotated[list[int], Tag("list")]
    | Annotated[LinearSettings, Tag("linear")]
    | Annotated[AnySettings, Tag("any")],
    Discriminator(
        _written_as,
        custom_error_type="merge_r",
        custom_error_message="must be a whole number, a list with one for each block, {first: n, last: n} "
        "or {train: [least, most]}",
    ),
]


class MergeSettings(Settings):
    """How tokens are merged."""

    method: Literal[tuple(MERGERS)] = Field("tome", description="merging method; none: no merging, whatever r is")
    r: Removed = Field(
        0, description="tokens removed by each block: n, one n per block, {first: n, last: n} or {train: [least, most]}"
    )
    keep: KeepSettings | None = Field(None, description="in place of r: the share of patches that chosen blocks keep")
    target_gmacs: float | None = Field(None, gt=0, description="in place of r: GMACs of one image, met within 0.5 %")
    target_ratio: float | None = Field(
        None,
        description="in place of r: MACs without merging over MACs with it, 1 or more",
        json_schema_extra={"minimum": 1},
    )
    metric: Literal[METRICS] | None = Field(None, description="what tokens are compared by; null: the method's own")
    prop_attn: bool = Field(True, description="weigh attention by token size")
    kth: int | None = Field(None, ge=2, description="tome: every kth patch is a destination; null: 2")
    prune: bool | None = Field(None, description="topk: drop patches instead of fusing them, their mass is lost")
    neighbours: int | None = Field(None, ge=1, description="dpc_knn: nearest neighbours that make the density; null: 5")
    form: Literal[SELECTIONS] | None = Field(None, description="facility_location: how it selects patches; null: auto")

    @field_validator("target_ratio")
    @classmethod
    def _is_a_saving(cls, ratio: float | None) -> float | None:
        if ratio is not None and ratio < 1:
            raise ValueError("must be at least 1: MACs without merging over MACs with it; 2 halves them")
        return ratio

    @model_validator(mode="after")
    def _goes_together(self) -> MergeSettings:
        if any(n < 0 for n in ([self.r] if isinstance(self.r, int) else self.r if isinstance(self.r, list) else [])):
            raise ValueError(f"merge.r = {self.r}: must not be negative")
        given = [key for key in BUDGETS if getattr(self, key) not in (None, 0)]
        if len(given) > 1:
            stands, other = (f"merge.{key} = {self.model_dump()[key]}" for key in (given[1], given[0]))
            raise ValueError(f"{stands}: it stands in place of {other}; give one of them")
        for key in OPTIONS:
            if getattr(self, key) is not None and key not in MERGERS[self.method].options:
                takers = " and ".join(name for name, merger in MERGERS.items() if key in merger.options)
                raise ValueError(f"merge.{key} = {getattr(self, key)}: {self.method} has no such option, {takers} has")
        if MERGERS[self.method].soft is not None:
            if self.compared_by() != "learned":
                raise ValueError(f"merge.metric = {self.metric!r}: {self.method} learns its own; leave it out")
            if not self.prop_attn:
                raise ValueError(f"merge.prop_attn = false: {self.method} learns through it; leave it true")
        return self

    @property
    def solved(self) -> bool:
        """Whether it says how many tokens go, not only what that should cost."""
        return self.target_gmacs is None and self.target_ratio is None

    def merger(self) -> Merger:
        """The method, its options bound."""
        return MERGERS[self.method].bind(
            **{key: getattr(self, key) for key in OPTIONS if getattr(self, key) is not None}
        )

    def compared_by(self) -> str:
        """One of METRICS."""
        return self.metric or MERGERS[self.method].metric

    def plan(self, depth: int) -> Plan:
        """What each of `depth` blocks is asked for. Where r is drawn while training: the middle of its range.

        Raises:
            ValueError: a list of another length, a block that there is not, or a budget that has yet to be solved.
        """
        if not self.solved:
            key = "target_ratio" if self.target_gmacs is None else "target_gmacs"
            raise UserError(
                f"model.merge.{key} = {getattr(self, key)}: not solved yet; build from "
                "engine.cost.budget.solve(settings)"
            )
        if self.keep is not None:
            if strangers := [b for b in self.keep.blocks if not 1 <= b <= depth]:
                raise ValueError(f"merge.keep.blocks = {self.keep.blocks}: no block {strangers[0]}; use 1 to {depth}")
            return [self.keep.rate if i + 1 in self.keep.blocks else 0 for i in range(depth)]
        if isinstance(self.r, AnySettings):
            return [sum(self.r.train) // 2] * depth
        if isinstance(self.r, LinearSettings):
            step = (self.r.last - self.r.first) / max(depth - 1, 1)
            return [round(self.r.first + step * i) for i in range(depth)]
        if isinstance(self.r, int):
            return [self.r] * depth
        if len(self.r) != depth:
            has = f"merge.r has {len(self.r)} entries; the model has {depth} blocks"
            raise ValueError(f"{has}; give {depth}, or one number for all")
        return self.r
