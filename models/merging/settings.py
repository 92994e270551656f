"""The `merge:` section of a model's settings: the method and its options, how many tokens to remove, and the metric."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field, create_model, field_validator, model_validator

from ..settings import Settings, UserError
from .amounts import MOST, AnySettings, Blocks, KeepSettings, LinearSettings, Removed
from .contract import Adaptive, Grid, Merger, Removal, declared_options
from .layer import METRICS
from .methods import MERGERS
from .schedule import Plan, effective_schedule

# Ways to say how many tokens to remove; they exclude each other.
BUDGETS = ("r", "keep", "threshold", "target_gmacs", "target_ratio", "target_ms")
TARGETS = ("target_gmacs", "target_ratio", "target_ms", "target_batch")


def _keys(name: str, merger: Merger) -> tuple[str, ...]:
    """The keys that a method has and others lack; without merging there is no target to be met."""
    targets = TARGETS if name != "none" else ()
    return (*merger.options, *targets, *(("threshold",) if merger.threshold else ()))


def conflict_of_blocks(settings: Any) -> tuple[str, str] | None:
    """Returns the key that says which blocks merge although another one says so, and that one; None if there is none.

    Args:
        settings: anything with `r`, `keep`, `first_block` and `blocks`.
    """
    given = {
        "r": isinstance(settings.r, list),
        "keep.blocks": settings.keep is not None,
        "blocks": settings.blocks is not None,
        "first_block": settings.first_block > 1,
    }
    says = [key for key, is_given in given.items() if is_given]
    return (says[-1], says[0]) if len(says) > 1 and says[-1] in ("blocks", "first_block") else None


class CommonSettings(Settings):
    """The keys of the `merge:` section that every method accepts."""

    alternatives: ClassVar = (BUDGETS,)
    keys_by_choice: ClassVar = {"method": {name: _keys(name, merger) for name, merger in MERGERS.items()}}

    method: Literal[tuple(MERGERS)] = Field("tome", description="merging method; none: no merging, whatever r is")  # type: ignore[valid-type]
    r: Removed = Field(
        0, description="tokens removed by each block: n, one n per block, {first: n, last: n} or {train: [least, most]}"
    )
    first_block: int = Field(
        1, ge=1, le=1000, description="the first block that merges, counted from 1; lists and keep name their blocks"
    )
    blocks: Blocks | None = Field(
        None, min_length=1, description="the blocks that merge, counted from 1; null: all from first_block on"
    )
    keep: KeepSettings | None = Field(None, description="instead of r: the share of patches that some blocks keep")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="instead of r: each image loses as many patches as the method finds beyond it"
    )
    target_gmacs: float | None = Field(
        None, gt=0, le=1e9, description="instead of r: GMACs of one image, met within 0.5 %"
    )
    target_ratio: float | None = Field(
        None,
        description="instead of r: MACs without merging divided by MACs with merging, 1 or more",
        le=1e9,
        json_schema_extra={"minimum": 1},
    )
    target_ms: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="instead of r: milliseconds of a forward pass on this machine, which are measured",
    )
    target_batch: int = Field(1, ge=1, le=100_000, description="for target_ms: images in the forward pass")
    metric: Literal[METRICS] | None = Field(None, description="what tokens are compared by; null: the method's own")  # type: ignore[valid-type]
    prop_attn: bool = Field(True, description="weight attention by token size")


def _option_fields() -> dict[str, Any]:
    """A field for each option that methods declare; null stands for the method's default."""
    fields: dict[str, Any] = {}
    declared: dict[str, tuple[Any, ...]] = {}
    for name, merger in MERGERS.items():
        for key, (kind, option) in declared_options(merger.assign).items():
            default = str(merger.options[key]).lower()
            text = f"{name}: {option.description}; null: {default}"
            values = bool(get_args(kind)) or kind, option.least, option.most
            if declared.setdefault(key, values) != values:
                raise TypeError(f"{key} is an option of two methods with other values; rename the one of {name}")
            if key in fields:
                text = f"{fields[key][1].description}. {text}"
                kind = _either(fields[key][0], kind)
            most = MOST if option.most is None and option.least is not None else option.most
            fields[key] = (kind, Field(None, ge=option.least, le=most, description=text))
    return {key: (kind | None, field) for key, (kind, field) in fields.items()}


def _either(kind: Any, other: Any) -> Any:
    """The type of an option of two methods: of lists of words, all words. What a method accepts is checked below."""
    words = tuple(dict.fromkeys((*get_args(kind), *get_args(other))))
    return Literal[words] if words else kind


OPTIONS = tuple(_option_fields())  # keys that only some methods accept
if TYPE_CHECKING:
    WithOptions = CommonSettings
else:
    WithOptions = create_model("WithOptions", __base__=CommonSettings, **_option_fields())


class MergeSettings(WithOptions):
    """How tokens are merged."""

    @field_validator("target_ratio")
    @classmethod
    def _is_a_saving(cls, ratio: float | None) -> float | None:
        if ratio is not None and ratio < 1:
            raise ValueError("must be at least 1: MACs without merging divided by MACs with it; 2 halves them")
        return ratio

    @model_validator(mode="after")
    def _goes_together(self) -> MergeSettings:
        if any(n < 0 for n in ([self.r] if isinstance(self.r, int) else self.r if isinstance(self.r, list) else [])):
            raise ValueError(f"merge.r = {self.r}: must not be negative")
        budgets = [key for key in BUDGETS if (value := getattr(self, key)) is not None and (key, value) != ("r", 0)]
        if len(budgets) > 1:
            first, second = (f"merge.{key} = {self.model_dump()[key]}" for key in budgets[:2])
            raise ValueError(f"{second}: cannot be combined with {first}; give one of them")
        if self.target_batch != 1 and self.target_ms is None:
            raise ValueError(f"merge.target_batch = {self.target_batch}: is for merge.target_ms; give that too")
        if (conflict := conflict_of_blocks(self)) is not None:
            key, says = conflict
            raise ValueError(f"merge.{key} = {getattr(self, key)}: merge.{says} says which blocks merge; omit one")
        if self.threshold is not None and not MERGERS[self.method].threshold:
            others = ", ".join(name for name, merger in MERGERS.items() if merger.threshold)
            raise ValueError(f"merge.threshold = {self.threshold}: not with {self.method}; give r, or use {others}")
        if self.target is not None and self.merger().samples:
            has = f"merge.{self.target} = {getattr(self, self.target)}"
            raise ValueError(f"{has}: with merge.adaptive the cost depends on the image; give merge.r or merge.keep")
        for key in OPTIONS:
            if getattr(self, key) is not None and key not in MERGERS[self.method].options:
                owners = [name for name, merger in MERGERS.items() if key in merger.options]
                *several, last = owners
                has = f"{', '.join(several)} and {last} have" if several else f"{last} has"
                raise ValueError(f"merge.{key} = {getattr(self, key)}: {self.method} has no such option, {has}")
            if (words := self._words(key)) and getattr(self, key) not in (None, *words):
                raise ValueError(f"merge.{key} = {getattr(self, key)}: {self.method} has {' and '.join(words)}")
        if MERGERS[self.method].pooling is not None:
            if self.compared_by() != "tokens":
                raise ValueError(f"merge.metric = {self.metric!r}: {self.method} compares the tokens; omit the key")
            if isinstance(self.r, AnySettings):
                raise ValueError(f"merge.r.train = {self.r.train}: {self.method} learns one number of tokens; give r=n")
        if MERGERS[self.method].soft is not None:
            if self.compared_by() != MERGERS[self.method].metric:
                raise ValueError(f"merge.metric = {self.metric!r}: {self.method} learns its own metric; omit the key")
            if not self.prop_attn:
                raise ValueError(f"merge.prop_attn = false: {self.method} learns through it; use true")
        return self

    def _words(self, key: str) -> tuple[str, ...]:
        """The words that an option of the method may be; none for other options."""
        kind, _ = declared_options(MERGERS[self.method].assign).get(key, (None, None))
        return get_args(kind)

    @property
    def target(self) -> str | None:
        """The key of a budget that has not been solved yet, such as "target_gmacs"; None if there is none."""
        return next(
            (key for key in ("target_gmacs", "target_ratio", "target_ms") if getattr(self, key) is not None), None
        )

    @property
    def solved(self) -> bool:
        """Whether the section states how many tokens to remove, not only a budget."""
        return self.target is None

    @property
    def per_image(self) -> bool:
        """Whether the number of patches that is removed depends on the image."""
        return self.threshold is not None or self.merger().samples

    def merger(self) -> Merger:
        """The method with its options."""
        return MERGERS[self.method].bind(
            **{key: getattr(self, key) for key in OPTIONS if getattr(self, key) is not None}
        )

    def compared_by(self) -> str:
        """What tokens are compared by: one of METRICS."""
        return self.metric or MERGERS[self.method].metric

    def schedule(self, depth: int, grid: Grid) -> list[Removal]:
        """Returns the number of patches that each of `depth` blocks removes: as many as requested, or as it can;
        Adaptive where it depends on the image.

        Args:
            depth: number of blocks.
            grid: rows and columns of the patches that enter the first block.
        """
        return effective_schedule(self.plan(depth), prod(grid), self.merger(), grid)

    def plan(self, depth: int) -> Plan:
        """The number of tokens, or share to keep, requested from each of `depth` blocks.

        Where r is drawn during training, it is the middle of the range.

        Raises:
            ValueError: a list of another length, a block that does not exist, or a budget that has not been solved yet.
        """
        if self.target is not None:
            raise UserError(
                f"model.merge.{self.target} = {getattr(self, self.target)}: not solved yet; "
                "models.budget.solve(settings) turns it into r"
            )
        if self.keep is not None:
            if missing := [b for b in self.keep.blocks if not 1 <= b <= depth]:
                raise ValueError(f"merge.keep.blocks = {self.keep.blocks}: no block {missing[0]}; use 1 to {depth}")
            return [self.keep.rate if i + 1 in self.keep.blocks else 0 for i in range(depth)]
        if not isinstance(self.r, list):
            blocks = self.merging_blocks(depth)
            if self.threshold is not None:
                return [Adaptive(self.threshold) if i in blocks else 0 for i in range(depth)]
            removed = dict(zip(blocks, self._removed(len(blocks)), strict=True))
            return [removed.get(i, 0) for i in range(depth)]
        if len(self.r) != depth:
            has = f"merge.r has {len(self.r)} entries; the model has {depth} blocks"
            raise ValueError(f"{has}; give {depth}, or one number for all")
        return self.r

    def with_r(self, r: int | list[int]) -> MergeSettings:
        """The same settings with this `r` in place of whatever says how many tokens are removed."""
        blocks = {"first_block": 1, "blocks": None} if isinstance(r, list) else {}
        return self.model_copy(update={**dict.fromkeys(BUDGETS), "target_batch": 1, "r": r, **blocks})

    def with_threshold(self, threshold: float) -> MergeSettings:
        """The same settings with this threshold in place of whatever says how many tokens are removed."""
        others = {**dict.fromkeys(BUDGETS), "r": 0, "target_batch": 1}
        return self.model_copy(update={**others, "threshold": threshold})

    def merging_blocks(self, depth: int) -> list[int]:
        """The blocks, of `depth`, that may merge where `r` is no list: their numbers counted from 0, ascending.

        Raises:
            ValueError: there is no such block.
        """
        if self.first_block > depth:
            raise UserError(f"merge.first_block = {self.first_block}: the model has {depth} blocks; use 1 to {depth}")
        if self.blocks is None:
            return list(range(self.first_block - 1, depth))
        if missing := [block for block in self.blocks if not 1 <= block <= depth]:
            raise UserError(f"merge.blocks = {self.blocks}: no block {missing[0]}; use 1 to {depth}")
        return sorted(block - 1 for block in self.blocks)

    def _removed(self, blocks: int) -> list[int]:
        """What `r`, if it is no list, requests from each of the blocks that merge."""
        assert not isinstance(self.r, list)
        if isinstance(self.r, AnySettings):
            return [sum(self.r.train) // 2] * blocks
        if isinstance(self.r, LinearSettings):
            step = (self.r.last - self.r.first) / max(blocks - 1, 1)
            return [round(self.r.first + step * i) for i in range(blocks)]
        return [self.r] * blocks
