"""Token merging. A method is a function (metric, r, context) -> Assignment in a file of its own, and a line here."""

from models.merging.schedule import effective_schedule
from models.merging.tokens import (
    Assignment,
    MergeContext,
    Method,
    Tokens,
    apply_assignment,
    initial_tokens,
    merge,
    size_bias,
    unmerge,
)
from models.merging.tome import tome

MERGERS: dict[str, Method] = {"tome": tome}

__all__ = [
    "MERGERS",
    "Assignment",
    "MergeContext",
    "Method",
    "Tokens",
    "apply_assignment",
    "effective_schedule",
    "initial_tokens",
    "merge",
    "size_bias",
    "tome",
    "unmerge",
]
