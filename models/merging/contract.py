"""What a merging method is: what it sees, what it answers, and what its line in MERGERS says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

Grid = tuple[int, int]  # rows and columns of patches


class MergeContext(NamedTuple):
    """What a method may look at beside the metric. Patches only: prefix tokens are protected outside the methods."""

    size: Tensor  # (B, N) float32: how many input patches each patch stands for
    attention: Tensor | None = None  # (B, N) float32: see Merger.attention; None for methods that do not ask for it
    grid: Grid | None = None  # rows and columns, as long as the patches are a grid in row order
    depth: float = 0.0  # the block's number over the number of blocks: 0 in the first


class Assignment(NamedTuple):
    """A method's answer: patch i becomes part of output patch `index[:, i]`, of which there are `count`."""

    index: Tensor  # (B, N) int64
    count: int
    weight: Tensor | None = None  # (B, N) float32: means go by size x weight; 0: the patch is dropped, its mass lost
    grid: Grid | None = None  # rows and columns of the output patches, where they are a grid in row order


Assign = Callable[..., Assignment]  # (metric (B, N, D) float32, r, context, **options)


def half(patches: int, **options: Any) -> int:
    """What bipartite matching can take away: every source."""
    return patches // 2


def all_but_one(patches: int, **options: Any) -> int:
    """What a method can take away that may merge any patch with any other."""
    return max(patches - 1, 0)


@dataclass(frozen=True)
class Merger:
    """A line of MERGERS: a method, and what the rest of the code must know of it."""

    assign: Assign
    at_most: Callable[..., int] = all_but_one  # (patches, **options): the most that it can take away
    # What context.attention is: the share of attention that each patch gets, mean over the heads, from the class token
    # or over all tokens. Fused attention never has it: it is computed beside it, and costs show it.
    attention: Literal["class", "all"] | None = None
    # For methods that keep a grid: what the grid becomes where up to r patches may go. They remove what it allows.
    shrink: Callable[[Grid, int], Grid] | None = None
    metric: Literal["keys", "learned"] = "keys"  # what it compares by, unless told otherwise
    soft: Callable[..., Any] | None = None  # what it does instead while training; see dtem.py
    options: Mapping[str, Any] = field(default_factory=dict)  # keys of `merge:` that it alone takes: their defaults

    def bind(self, **options: Any) -> Merger:
        """The same method with its options chosen."""
        chosen = {**self.options, **options}
        return replace(
            self, assign=partial(self.assign, **chosen), at_most=partial(self.at_most, **chosen), options=chosen
        )
