"""The blocks of a model that may be absent from a file, because the network of the file has fewer of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..merging.layer import MergeLayer
from .fit import COMPUTED

MATRICES = 2  # a block has at least as many layers; a convolution with its norm is a layer


def absent_blocks(model: nn.Module, loaded: set[str]) -> tuple[str, ...]:
    """Returns the prefixes of blocks of which nothing is loaded, where an equal block beside them is loaded completely.

    Blocks are recognised by the model's structure, not by its names: they have the same parent, the same class, and
    parameters of the same names and shapes. Such a block can be left out of a network. A layer inside of it cannot, nor
    can a block that changes the shape of its input.

    Args:
        model: the model.
        loaded: names of the model's weights that are loaded.
    """
    absent = []
    for blocks in _repeated(model, ""):
        names = {path: {f"{path}{name}" for name in _shapes(block)} for path, block in blocks.items()}
        if any(own <= loaded for own in names.values()):
            absent += [path for path, own in names.items() if not own & loaded]
    return tuple(absent)


def _repeated(module: nn.Module, path: str) -> Iterator[dict[str, nn.Module]]:
    """Yields groups of equal blocks beside each other, by the prefix of their names; the outermost ones."""
    groups: dict[tuple, dict[str, nn.Module]] = {}
    for name, child in module.named_children():
        shapes = _shapes(child)
        layers = sum(len(shape) > 1 for shape in shapes.values())
        kind = (type(child), *shapes.items()) if layers >= MATRICES and any(child.children()) else (f"{path}{name}.",)
        groups.setdefault(kind, {})[f"{path}{name}."] = child
    for group in groups.values():
        if len(group) > 1:
            yield group
        else:
            ((prefix, child),) = group.items()
            yield from _repeated(child, prefix)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what a module learned, without merging, which files of other networks do not have."""
    merging = tuple(f"{path}." for path, inner in module.named_modules() if isinstance(inner, MergeLayer))
    state: dict[str, Tensor] = module.state_dict()
    return {
        name: tuple(value.shape)
        for name, value in state.items()
        if not name.endswith(COMPUTED) and not (merging and name.startswith(merging))
    }
