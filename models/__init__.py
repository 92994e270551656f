"""Networks. They know nothing of YAML, data, logging or the engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

# torchvision, timm and fvcore use torch.jit.script as they are imported; users cannot do anything about that.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

from models.hybrid import HybridSettings, build_hybrid  # noqa: E402
from models.settings import Settings, UserError, check, nearest  # noqa: E402
from models.vit import ViTSettings, build_vit  # noqa: E402

# name -> (what its options are, how it is built from them)
MODELS: dict[str, tuple[type[Settings], Callable[[Any], nn.Module]]] = {
    "vit": (ViTSettings, build_vit),
    "hybrid": (HybridSettings, build_hybrid),
}


def build(settings: Settings) -> nn.Module:
    """The model of checked settings, one of MODELS' settings classes."""
    return MODELS[settings.name][1](settings)


def build_model(name: str, **options: Any) -> nn.Module:
    """Builds a model; `options` are the keys of the YAML's `model:` section.

    Raises:
        UserError: an unknown model or option, or a value out of range, in one line.
    """
    if name not in MODELS:
        raise UserError(f"model.name = {name!r}: unknown; {nearest(name, sorted(MODELS))}")
    return build(check(MODELS[name][0], {"name": name, **options}, where="model"))
