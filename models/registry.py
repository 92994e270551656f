"""All models by name: the settings of each, and where the function stands that builds it.

Importing this file imports the settings alone. A model's own code, with timm and torchvision, is imported when one is
built, so that settings are checked without waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import Settings
from .settings.cnn import CNNModelSettings
from .settings.conformer import ConformerSettings
from .settings.hybrid import HybridSettings
from .settings.lenet5 import LeNet5Settings
from .settings.vit import ViTSettings
from .settings.zoo import TimmSettings, TorchvisionSettings

if TYPE_CHECKING:
    from torch import nn


def imported(module: str, name: str) -> Callable[[Any], nn.Module]:
    """Returns a function that imports a model's builder when it is called, and calls it.

    Args:
        module: the file in this folder, without .py.
        name: the function or class in it that makes a model of settings.
    """

    def build(settings: Any) -> nn.Module:
        return getattr(import_module(f".{module}", __package__), name)(settings)

    return build


# The name of a model -> its settings class, and the function that builds it from such settings.
MODELS: dict[str, tuple[type[Settings], Callable[[Any], nn.Module]]] = {
    "vit": (ViTSettings, imported("vit", "build_vit")),
    "hybrid": (HybridSettings, imported("hybrid", "build_hybrid")),
    "conformer": (ConformerSettings, imported("conformer", "Conformer")),
    "cnn": (CNNModelSettings, imported("cnn", "CNN")),
    "lenet5": (LeNet5Settings, imported("cnn", "LeNet5")),
    "timm": (TimmSettings, imported("zoo", "build_zoo")),
    "torchvision": (TorchvisionSettings, imported("zoo", "build_zoo")),
}
