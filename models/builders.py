"""Builds models from their settings."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from .archives import in_words, memory_limit
from .budget import solve
from .registry import MODELS
from .settings import Settings, UserError, check, nearest
from .settings.vit import EncoderSettings
from .settings.zoo import LIBRARIES, split_name
from .weights import load_weights


def build(settings: Settings) -> nn.Module:
    """Builds a model, with random weights, from an instance of one of the settings classes in MODELS.

    A budget in its `merge:` section is solved first.

    Raises:
        UserError: the model does not fit into memory.
    """
    _check_size(settings)
    solved = solve(settings)
    try:
        return MODELS[settings.name][1](solved)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"model.name = {settings.name!r}: its weights do not fit into memory; use a smaller model"
        ) from error


def _check_size(settings: Any) -> None:
    """Refuses a transformer that is larger than the memory that there is: the system would kill the process."""
    if not isinstance(settings, EncoderSettings):
        return
    weights = (
        settings.depth * (4 + 2 * settings.mlp_ratio) * settings.embed_dim**2 + prod(settings.grid) * settings.embed_dim
    )
    needed, present = 4 * weights, memory_limit()
    if needed > present:
        raise UserError(
            f"model.embed_dim = {settings.embed_dim}: with depth {settings.depth} and a grid of {settings.grid[0]} "
            f"patches a side the weights take {in_words(int(needed))} of memory, and there are "
            f"{in_words(present)}; use smaller ones"
        )


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
