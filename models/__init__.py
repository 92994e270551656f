"""Networks. They know nothing of YAML, data, logging or the engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

# torchvision, timm and fvcore use torch.jit.script as they are imported; users cannot do anything about that.
warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)

from .cnn import LeNet5, LeNet5Settings  # noqa: E402
from .conformer import Conformer, ConformerSettings  # noqa: E402
from .hybrid import HybridSettings, build_hybrid  # noqa: E402
from .settings import Settings, UserError, check, nearest  # noqa: E402
from .vit import ViTSettings, build_vit  # noqa: E402
from .weights import load_weights  # noqa: E402
from .zoo import LIBRARIES, TimmSettings, TorchvisionSettings, build_zoo, split_name  # noqa: E402

# name -> (what its options are, how it is built from them)
MODELS: dict[str, tuple[type[Settings], Callable[[Any], nn.Module]]] = {
    "vit": (ViTSettings, build_vit),
    "hybrid": (HybridSettings, build_hybrid),
    "conformer": (ConformerSettings, Conformer),
    "lenet5": (LeNet5Settings, LeNet5),
    "timm": (TimmSettings, build_zoo),
    "torchvision": (TorchvisionSettings, build_zoo),
}


def build(settings: Settings) -> nn.Module:
    """The model of checked settings, one of MODELS' settings classes."""
    return MODELS[settings.name][1](settings)


def build_model(name: str, **options: Any) -> nn.Module:
    """Builds a model; `options` are the keys of the YAML's `model:` section. `weights` are loaded, if there are any.

    Raises:
        UserError: an unknown model or option, or a value out of range, in one line.
    """
    options = split_name({"name": name, **options})
    if options["name"] not in MODELS:
        known = [f"{known}:NAME" if known in LIBRARIES else known for known in sorted(MODELS)]
        raise UserError(f"model.name = {name!r}: unknown; {nearest(name, known)}")
    settings = check(MODELS[options["name"]][0], options, where="model")
    model = build(settings)
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model
