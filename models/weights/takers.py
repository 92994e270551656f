"""Finds the models of timm for weights that do not fit the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
from torch import nn

from .files import State
from .fit import heads_of
from .report import Report

# What timm calls transformers of these widths.
SIZES = {
    192: "tiny",
    384: "small",
    512: "medium",
    768: "base",
    1024: "large",
    1152: "so400m",
    1280: "huge",
    1408: "giant",
    1536: "giant",
}


def takers(state: State, take: Callable[[nn.Module, State], Report | None]) -> list[str]:
    """Returns the names of ViTs of timm that have a place for all of these weights, and need no others.

    The models of this width and patch size are built without their data, which takes seconds.

    Args:
        state: the content of a file.
        take: returns what a model takes of it, or None unless that is all.

    Returns:
        One name for each function that may be the file's, first those with the shortest names: models can differ in
        their activation or pooling alone, of which a file says nothing. Sizes of image other than the file's are given
        if there is none with its own.
    """
    found: list[tuple[str, Report, str]] = []
    parameters: set[str] = set()  # of the first that takes them, which the others have as well
    for name, model in _candidates(state):
        own = set(model.state_dict())
        if own == (parameters or own) and (report := take(model, state)):
            parameters = own
            found.append((name, report, _function(model)))
    found = [entry for entry in found if not entry[1].resized] or found
    shortest = {function: name for name, _, function in reversed(found)}
    return sorted(shortest.values(), key=_shortness)


def _shortness(name: str) -> tuple[int, str]:
    return len(name), name


def _function(model: nn.Module) -> str:
    """Returns a text that is equal for models that compute the same from the same weights, whatever their heads."""
    heads = heads_of(model)
    layers = [
        (name, type(module).__name__, module.extra_repr(), getattr(module, "num_heads", None))
        for name, module in model.named_modules()
        if name and not f"{name}.".startswith(heads)
    ]
    return str((getattr(model, "global_pool", None), layers))


def _candidates(state: State) -> Iterator[tuple[str, nn.Module]]:
    """Yields timm's transformers with the width and the patch size of a file's patch embedding."""
    kernels = [tuple(value.shape) for value in state.values() if value.ndim == 4 and value.shape[2] == value.shape[3]]
    found = {(shape[0], shape[2]) for shape in kernels if shape[0] in SIZES and shape[2] > 3}
    for width, patch in sorted(found):
        names = timm.list_models(f"*{SIZES[width]}*patch{patch}*")
        for name in sorted(names, key=_shortness):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name)
            except (RuntimeError, TypeError, ValueError):  # constructors that need data, or another library
                continue
            yield name, model
