"""Token merging: one method per file under `methods`, the state of merged tokens, schedules, and `wrap`, which puts
merging into ViTs of timm and torchvision.

Everything but `wrap` and `unwrap` needs torch alone; timm and torchvision are imported when these are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .contract import Assignment, MergeContext, Merger, Mixture, half
from .methods import MERGERS
from .schedule import effective_schedule
from .tokens import Tokens, apply_assignment, initial_tokens, log_size, merge, size_bias, unmerge

if TYPE_CHECKING:
    from .wrapping import unwrap, wrap

__all__ = [
    "MERGERS",
    "Assignment",
    "MergeContext",
    "Merger",
    "Mixture",
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


def __getattr__(name: str) -> Any:
    """Imports `wrap` or `unwrap` when it is first used (PEP 562)."""
    if name not in ("unwrap", "wrap"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".wrapping", __name__), name)
