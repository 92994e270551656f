"""Neural networks, independent of YAML files, data, logging and the engine.

Importing this package does not import torch: the models are imported when one of their names is first used, so that
settings and command lines can be checked in a fraction of a second.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import Settings, UserError, check, nearest

if TYPE_CHECKING:
    from .builders import build, build_model
    from .registry import MODELS
    from .settings.zoo import split_name

# Name -> the module that has it.
LATER = {"MODELS": "registry", "build": "builders", "build_model": "builders", "split_name": "settings.zoo"}
__all__ = ["MODELS", "Settings", "UserError", "build", "build_model", "check", "nearest", "split_name"]

# torchvision, timm and fvcore use torch.jit.script on import; users cannot do anything about that.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)


def __getattr__(name: str) -> Any:
    """Imports a name of LATER when it is first used (PEP 562)."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    """Names for completion, those that are imported later included."""
    return sorted({*globals(), *__all__})
