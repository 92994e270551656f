"""Builds models from their settings."""

from __future__ import annotations

from typing import Any

from torch import nn

from .budget import solve
from .registry import MODELS
from .settings import Settings, UserError, check, nearest
from .settings.zoo import LIBRARIES, split_name
from .weights import load_weights


def build(settings: Settings) -> nn.Module:
    """Builds a model, with random weights, from an instance of one of the settings classes in MODELS.

    A budget in its `merge:` section is solved first.
    """
    return MODELS[settings.name][1](solve(settings))


def build_model(name: str, **options: Any) -> nn.Module:
    """Builds a model and loads its weights, if `weights` is among the options.

    Args:
        name: a key of MODELS, `timm:NAME` or `torchvision:NAME`.
        options: the keys of the YAML's `model:` section.

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
