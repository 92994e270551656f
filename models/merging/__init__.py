"""Token merging. A method is a function (metric, r, context) -> Assignment in a file of its own, and a line here."""

from models.merging.baselines import none, none_at_all, pool, pooled, random
from models.merging.contract import Assignment, MergeContext, Merger, half
from models.merging.schedule import effective_schedule
from models.merging.tokens import Tokens, apply_assignment, initial_tokens, merge, size_bias, unmerge
from models.merging.tome import at_most as tome_at_most
from models.merging.tome import tome

MERGERS: dict[str, Merger] = {
    "none": Merger(none, none_at_all),
    "random": Merger(random),
    "pool": Merger(pool, shrink=pooled),
    "tome": Merger(tome, tome_at_most, options={"kth": 2}).bind(),
}

__all__ = [
    "MERGERS",
    "Assignment",
    "MergeContext",
    "Merger",
    "Tokens",
    "apply_assignment",
    "effective_schedule",
    "half",
    "initial_tokens",
    "merge",
    "size_bias",
    "unmerge",
]
