"""What comparisons in a pretrained model have in common: the model, and the ways of merging that are its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from engine.settings.types import FreeKey
from engine.study.compare.budgets import budget_in_words
from models.merging import MERGERS
from models.merging.settings import (
    BUDGETS,
    AnySettings,
    Blocks,
    KeepSettings,
    MergeSettings,
    Removed,
    conflict_of_blocks,
)
from models.settings import Settings, UserError, check
from models.settings.zoo import TimmSettings, TorchvisionSettings

Model = Annotated[TimmSettings | TorchvisionSettings, Field(discriminator="name")]
Method = Literal[tuple(name for name, merger in MERGERS.items() if name != "none" and merger.metric != "learned")]  # type: ignore[valid-type]
SEPARATOR = ", "  # between a row's line in a figure and its budget
UNMERGED = "unmerged"  # the name of the first row
ROWS = 10_000  # the most that a comparison may have


@dataclass(frozen=True)
class Way:
    """What a row changes in the pretrained model.

    Attributes:
        merge: how it merges; None: not at all.
        size: the height and width of its images, pixels; None: those of the comparison.
    """

    merge: MergeSettings | None = None
    size: int | None = None


class Budget(Settings):
    """How much is merged: one of the keys that say so in the `merge:` section, and from which block on."""

    r: Removed | None = Field(None, description="tokens removed by each block: n, one n per block, {first: n, last: n}")
    keep: KeepSettings | None = Field(None, description="the share of patches that some blocks keep")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="each image loses as many patches as the method finds beyond it"
    )
    target_gmacs: float | None = Field(None, gt=0, le=1e9, description="GMACs of one image, met within 0.5 %")
    target_ratio: float | None = Field(None, ge=1, le=1e9, description="MACs without merging divided by MACs with it")
    target_ms: float | None = Field(None, gt=0, le=1e9, description="milliseconds of a forward pass on this machine")
    target_batch: int = Field(1, ge=1, le=100_000, description="for target_ms: images in the forward pass")
    first_block: int = Field(1, ge=1, le=1000, description="the first block that merges, counted from 1")
    blocks: Blocks | None = Field(None, min_length=1, description="the blocks that merge, counted from 1; null: all")

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"r: each budget has one of {', '.join(BUDGETS)}, as in {{r: 8}}; this has {len(given)}")
        if isinstance(self.r, AnySettings):
            raise ValueError("r = {train: ...}: nothing is trained here; give a number")
        if (conflict := conflict_of_blocks(self)) is not None:
            key, says = conflict
            raise ValueError(f"{key} = {getattr(self, key)}: {says} says which blocks merge; omit one")
        return self

    def given(self) -> dict[str, Any]:
        """The keys that are given, and their values."""
        return self.model_dump(exclude_none=True, exclude_defaults=True)


class RowSettings(MergeSettings):
    """A row by name: how it merges, and the size of its images."""

    img_size: int | None = Field(None, ge=1, le=10_000, description="of the row's images, pixels; null: the model's")

    def way(self) -> Way:
        """Returns what the row changes."""
        values = self.model_dump(exclude={"img_size"}, exclude_unset=True)
        return Way(MergeSettings.model_validate(values), self.img_size)


class WaysSettings(Settings):
    """A pretrained model, every method with every budget, and further rows by name. Each comparison adds its images."""

    name: str = Field(min_length=1, pattern=r"^[^/\x00-\x1f]+$", description="name of the folder that results go to")
    out: str | None = Field(None, min_length=1, description="that folder; null: runs/NAME")
    model: Model = Field(description="the pretrained model; its merge: section holds keys that all methods share")
    methods: list[Method] = Field([], description="merging methods, each with every budget")
    budgets: list[Budget] = Field([], description="how much is merged, as in [{r: 8}, {target_gmacs: 0.9}]")
    rows: dict[FreeKey, RowSettings] = Field(
        {},
        description='further rows, as in {"tome by tokens, r = 8": {method: tome, metric: tokens, r: 8}}, with '
        "img_size for images of another size; a figure joins rows whose names begin alike, up to the comma",
    )
    sizes: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        [],
        description="other image sizes, pixels, at which the model is evaluated without merging: among them those that "
        "cost as much as merged rows, as in [192, 176]",
    )
    batch_size: int = Field(50, ge=1, le=100_000, description="images in a batch")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int | None = Field(None, ge=1, le=1024, description="threads of torch; null: as many as torch chooses")

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, sizes: list[int]) -> list[int]:
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"{sizes}: must be different numbers of pixels")
        return sizes

    @field_validator("rows")
    @classmethod
    def _named(cls, rows: dict[str, RowSettings]) -> dict[str, RowSettings]:
        for name, merge in rows.items():
            if name == UNMERGED or not name.strip() or not name.isprintable():
                raise ValueError(f"{name!r}: not a name for a row; give another")
            if isinstance(merge.r, AnySettings):
                raise ValueError(f"{name}.r = {{train: ...}}: nothing is trained here; give a number")
            if merge.compared_by() == "learned":
                raise ValueError(f"{name}: {merge.method} learns its metric in training; choose another method")
        return rows

    @model_validator(mode="after")
    def _complete(self) -> WaysSettings:
        if bool(self.methods) != bool(self.budgets):
            missing = "budgets" if self.methods else "methods"
            raise ValueError(f"{missing}: none; every method is evaluated with every budget, so give both or neither")
        if not self.methods and not self.rows and not self.sizes:
            raise ValueError("methods: none, and no rows; give methods=[tome] budgets=[{r: 8}]")
        for size in self.sizes:
            if size == self.model.img_size:
                raise ValueError(f"sizes = {self.sizes}: {size} px is the model's own; leave it out")
            if f"{size} px" in self.rows:
                raise ValueError(f"rows.{size} px: the name of a row of sizes; give another")
        if self.model.weights is None:
            raise ValueError("model.weights: missing; give timm:NAME, torchvision:NAME or a file of pretrained weights")
        if len(self.ways()) > ROWS:
            raise ValueError(f"methods: {len(self.ways()):,} rows with these budgets; at most {ROWS:,}")
        return self

    def ways(self) -> dict[str, Way]:
        """The rows by name: unmerged, then at other sizes, then merged.

        Raises:
            UserError: a method does not take the keys that all methods share.
        """
        sizes = {f"{size} px": Way(size=size) for size in self.sizes}
        return {UNMERGED: Way(), **sizes, **self.merged_ways()}

    def at(self, size: int) -> WaysSettings:
        """The same comparison with a model for images of another size, pixels."""
        return self.model_copy(update={"model": self.model.model_copy(update={"img_size": size})})

    def merged_ways(self) -> dict[str, Way]:
        """The rows that merge, by name: methods x budgets, then the named ones.

        Raises:
            UserError: a method does not take the keys that all methods share.
        """
        shared = {} if self.model.merge is None else self.model.merge.model_dump(exclude_defaults=True)
        rows: dict[str, Way] = {}
        for method in self.methods:
            for budget in self.budgets:
                values = {**{key: value for key, value in shared.items() if key not in BUDGETS}, **budget.given()}
                merge = check(MergeSettings, {**values, "method": method}, where="model.merge")
                # The block belongs to the line: a figure joins budgets that are spent from the same block on.
                amount, begins, block = budget_in_words(merge).partition(" from ")
                rows[f"{method}{begins}{block}{SEPARATOR}{amount}"] = Way(merge)
        for name, row in self.rows.items():
            if name in rows:
                raise UserError(f"rows.{name}: the name of a method with a budget; give another")
            rows[name] = row.way()
        return rows
