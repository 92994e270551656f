"""Neural networks. They know nothing of YAML files, data, logging or the engine.

Importing this package imports no torch: the models are imported when a name of theirs is first used, so that settings
and command lines can be checked in a fraction of a second.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import Settings, UserError, check, nearest

if TYPE_CHECKING:
    from .registry import MODELS, build, build_model
    from .zoo_settings import split_name

__all__ = ["MODELS", "Settings", "UserError", "build", "build_model", "check", "nearest", "split_name"]

# torchvision, timm and fvcore use torch.jit.script as they are imported; users cannot do anything about that.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)


def __getattr__(name: str) -> Any:
    """Imports what stands in __all__ but is not imported above, when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "zoo_settings" if name == "split_name" else "registry"
    return getattr(import_module(f".{module}", __name__), name)
