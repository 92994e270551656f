"""Networks. They know nothing of YAML, data, logging or the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from models.hybrid import HybridSettings, build_hybrid
from models.settings import Settings, UserError, check, nearest
from models.vit import ViTSettings, build_vit

# name -> (what its options are, how it is built from them)
MODELS: dict[str, tuple[type[Settings], Callable[[Any], nn.Module]]] = {
    "vit": (ViTSettings, build_vit),
    "hybrid": (HybridSettings, build_hybrid),
}


def build_model(name: str, **options: Any) -> nn.Module:
    """Builds a model; `options` are the keys of the YAML's `model:` section.

    Raises:
        UserError: an unknown model or option, or a value out of range, in one line.
    """
    if name not in MODELS:
        raise UserError(f"model.name = {name!r}: unknown; {nearest(name, sorted(MODELS))}")
    settings_class, build = MODELS[name]
    return build(check(settings_class, {"name": name, **options}, where="model"))
