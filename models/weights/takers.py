"""Finds a model of timm for weights that do not fit the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
from torch import nn

from .files import State

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


def taker(state: State, takes_all: Callable[[nn.Module, State], bool]) -> str | None:
    """Returns the name of a ViT of timm that has a place for all of these weights, and needs no others.

    The models of this width and patch size are built without their data, which takes seconds.

    Args:
        state: the content of a file.
        takes_all: whether a model takes all of it.

    Returns:
        The shortest of the names; None if there is none.
    """
    return next((name for name, model in _candidates(state) if takes_all(model, state)), None)


def _candidates(state: State) -> Iterator[tuple[str, nn.Module]]:
    """Yields timm's transformers with the width and the patch size of a file's patch embedding."""
    kernels = [tuple(value.shape) for value in state.values() if value.ndim == 4 and value.shape[2] == value.shape[3]]
    found = {(shape[0], shape[2]) for shape in kernels if shape[0] in SIZES and shape[2] > 3}
    for width, patch in sorted(found):
        names = timm.list_models(f"*{SIZES[width]}*patch{patch}*")
        for name in sorted(names, key=lambda name: (len(name), name)):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name)
            except (RuntimeError, TypeError, ValueError):  # constructors that need data, or another library
                continue
            yield name, model
