"""How much a model merges, in words."""

from __future__ import annotations

from collections.abc import Sequence

from models.interface import merge_settings
from models.merging.settings import AnySettings, LinearSettings, MergeSettings
from models.settings import ModelSettings


def merging_of(settings: ModelSettings, removed: Sequence[int] = ()) -> tuple[str | None, str | None]:
    """Returns the merging method and the budget in words, such as ("tome", "r = 8"); None and None without merging.

    Args:
        settings: the model's settings, in which a target need not be solved.
        removed: the number of patches that each block removes, where it is known.
    """
    merge = merge_settings(settings)
    if merge is None or merge.method == "none" or _merges_nothing(merge, removed):
        return None, None
    return merge.method, budget_in_words(merge)


def budget_in_words(merge: MergeSettings) -> str:
    """Returns the budget of a `merge:` section: "r = 8", "keep 0.7 at 4, 7, 10" or "0.9 GMACs from block 3"."""
    if merge.blocks is not None:
        return f"{_amount(merge)} in blocks {_listed(sorted(merge.blocks))}"
    return _amount(merge) + (f" from block {merge.first_block}" if merge.first_block > 1 else "")


def _amount(merge: MergeSettings) -> str:
    if merge.target_gmacs is not None:
        return f"{merge.target_gmacs:g} GMACs"
    if merge.target_ratio is not None:
        return f"{merge.target_ratio:g} times fewer MACs"
    if merge.target_ms is not None:
        return f"{merge.target_ms:g} ms" + (f" for {merge.target_batch} images" if merge.target_batch > 1 else "")
    if merge.keep is not None:
        return f"keep {merge.keep.rate:g} at {_listed(merge.keep.blocks)}"
    if merge.threshold is not None:
        return f"threshold {merge.threshold:g}"
    if isinstance(merge.r, LinearSettings):
        return f"r = {merge.r.first} to {merge.r.last}"
    if isinstance(merge.r, AnySettings):
        return f"r = {sum(merge.r.train) // 2}, trained with {merge.r.train[0]} to {merge.r.train[1]}"
    return f"r = {_listed(merge.r) if isinstance(merge.r, list) else merge.r}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _merges_nothing(merge: MergeSettings, removed: Sequence[int]) -> bool:
    if removed:
        return not any(removed)
    return (
        merge.solved
        and merge.keep is None
        and merge.threshold is None
        and merge.r in (0, LinearSettings(first=0, last=0))
    )
