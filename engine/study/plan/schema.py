"""The keys of a plan, the file that tools/study.py runs: types, ranges, defaults, descriptions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from engine.settings.types import FreeKey
from models.settings import Settings

NAME = r"^[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*$"  # as of a run: it names a folder
FORM = "no slash, no dot or blank at its start"  # of a name
Overrides = dict[FreeKey, Any]  # dotted keys or sections -> values
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fold = Annotated[int, Field(ge=0, le=99)]


class RowSettings(Settings):
    """A named row of a plan."""

    cfg: str | None = Field(None, description="a YAML file, or its name under configs/; null: the plan's `cfg`")
    set: Overrides = Field({}, description="settings of this row")


class RangeSettings(Settings):
    """The values that a search tries for one setting. Whole numbers as bounds: only whole numbers are tried."""

    low: int | float = Field(description="the least value")
    high: int | float = Field(description="the largest value")
    log: bool = Field(False, description="whether values are drawn evenly on a logarithmic scale")

    @model_validator(mode="after")
    def _fits(self) -> RangeSettings:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low}: must be less than high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low}: must be greater than 0 on a logarithmic scale")
        return self


class SearchSettings(Settings):
    """A search over settings by their score on the validation images."""

    space: dict[FreeKey, RangeSettings | Annotated[list[Any], Field(min_length=2)]] = Field(
        min_length=1, description="dotted key -> {low, high, log}, or a list of choices"
    )
    trials: int = Field(ge=1, le=100_000, description="number of runs, those that are stopped early included")
    metric: str | None = Field(
        None, description="the metric on the validation images; null: the one that selects the best epoch"
    )
    seed: Seed = Field(0, description="of the sampler")
    prune: bool = Field(True, description="whether runs that fall behind the median of the others are stopped early")


class PlanSettings(Settings):
    """A study: configs x overrides x seeds x folds."""

    name: str = Field(pattern=NAME, description=f"the study's name, which names its folder: {FORM}")
    out: str | None = Field(None, min_length=1, description="the study folder; null: runs/NAME")
    cfg: str | None = Field(None, description="the config of rows that name none")
    configs: list[str] = Field([], description="configs, each of which is a row under its own name")
    rows: dict[FreeKey, RowSettings] = Field({}, description="named rows: {cfg, set}")
    set: Overrides = Field({}, description="settings that all rows share")
    vary: dict[FreeKey, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="dotted key -> list of values: every row is run with every combination"
    )
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None, description="a list of seeds, or how many, from 0; null: the config's own"
    )
    folds: Annotated[int, Field(ge=2, le=100)] | Annotated[list[Fold], Field(min_length=1)] | None = Field(
        None, description="how many folds, all of which are run, or a list of those of split.folds that are"
    )
    jobs: int = Field(1, ge=1, le=256, description="number of runs at a time")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of each run; null: the config's own")
    sweep: str | None = Field(
        None, description="ways of merging in which every finished run is evaluated, as in merge.r=[0,2,4]"
    )
    search: SearchSettings | None = Field(None, description="a search over settings, in place of `vary`")

    @model_validator(mode="after")
    def _fits(self) -> PlanSettings:
        if not (self.configs or self.rows or self.cfg):
            raise ValueError("configs: missing; give a list of configs, or named rows under rows:")
        for name, row in self.rows.items():
            if not re.match(NAME, name):
                raise ValueError(f"rows: {name!r}: names a folder; {FORM}")
            if row.cfg is None and self.cfg is None:
                raise ValueError(f"rows.{name}.cfg: missing; give the row a config, or all rows the plan's cfg:")
        for key in ("seeds", "folds"):
            values = getattr(self, key)
            if isinstance(values, list) and len(dict.fromkeys(values)) < len(values):
                raise ValueError(f"{key} = {values}: one is given twice; give each once")
        return self
