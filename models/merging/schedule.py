"""How many tokens each block removes."""

from __future__ import annotations

from collections.abc import Sequence


def limit(patches: int) -> int:
    """The most patches that bipartite matching can take from `patches`: every source, which is half of them."""
    return patches // 2


def effective_schedule(r: int | Sequence[int], depth: int, patches: int) -> list[int]:
    """What each block really removes, with r clamped to half of the patches that are left.

    Args:
        r: tokens to remove in every block, or one number per block.
        depth: how many blocks.
        patches: how many patches enter the first block, prefix tokens not counted.

    Raises:
        ValueError: a negative r, or a list whose length is not `depth`.
    """
    wanted = [r] * depth if isinstance(r, int) else list(r)
    if len(wanted) != depth:
        raise ValueError(f"merge.r has {len(wanted)} entries; the model has {depth} blocks")
    if any(n < 0 for n in wanted):
        raise ValueError(f"merge.r = {r}: must not be negative")
    schedule = []
    for n in wanted:
        schedule.append(min(n, limit(patches)))
        patches -= schedule[-1]
    return schedule
