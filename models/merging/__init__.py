"""Token merging: one method per file under `methods`, the state of merged tokens, schedules, and `wrap`, which puts
merging into ViTs of timm and torchvision."""

from .contract import Assignment, MergeContext, Merger, half
from .methods import MERGERS
from .schedule import effective_schedule
from .tokens import Tokens, apply_assignment, initial_tokens, log_size, merge, size_bias, unmerge
from .wrapping import unwrap, wrap

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
    "log_size",
    "merge",
    "size_bias",
    "unmerge",
    "unwrap",
    "wrap",
]
