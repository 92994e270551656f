"""Token merging: one method per file under `methods`, the state of merged tokens, schedules, and `wrap`, which puts
merging into ViTs of timm and torchvision.

Everything but `wrap`, `unwrap`, `fit_schedule` and `fit_threshold` needs torch alone; timm and torchvision are imported
when these are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .contract import Assignment, MergeContext, Merger, Mixture, half
from .methods import MERGERS
from .schedule import effective_schedule
from .tokens import Tokens, apply_assignment, initial_tokens, log_size, merge, size_bias, unmerge

if TYPE_CHECKING:
    from .fitting import fit_schedule, fit_threshold
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
    "fit_schedule",
    "fit_threshold",
    "half",
    "initial_tokens",
    "log_size",
    "merge",
    "size_bias",
    "unmerge",
    "unwrap",
    "wrap",
]


WITH_LIBRARIES = {"fit_schedule": ".fitting", "fit_threshold": ".fitting", "unwrap": ".wrapping", "wrap": ".wrapping"}


def __getattr__(name: str) -> Any:
    """Imports what needs other libraries when it is first used (PEP 562)."""
    if name not in WITH_LIBRARIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(WITH_LIBRARIES[name], __name__), name)
