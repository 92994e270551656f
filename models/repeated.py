"""The blocks of a network: the parts that repeat, of which it mostly consists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from .merging.wrapping import MergingBlocks

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, MergingBlocks)


def repeated(model: nn.Module) -> list[nn.Module]:
    """Returns the blocks of any model, in its order: of a ViT the transformer blocks, of a ResNet the residual blocks.

    A block is a module with learning parts inside whose class occurs more than once in the model. Only the outermost
    ones count; but a module that holds a list of blocks of its own, such as a stage of ConvNeXt, is none. What belongs
    to no block is mostly the stem, norms and heads.
    """
    kinds = Counter(type(module) for module in model.modules() if _has_parts(module))
    return list(_outermost(model, kinds))


def _outermost(module: nn.Module, kinds: Counter[type[nn.Module]]) -> Iterator[nn.Module]:
    for child in _inside(module):
        if isinstance(child, LISTS) or kinds[type(child)] < 2 or _holds_blocks(child, kinds):
            yield from _outermost(child, kinds)
        else:
            yield child


def _inside(module: nn.Module) -> list[nn.Module]:
    """The children of a module; of wrapped blocks, the blocks without the layers that merge between them."""
    if isinstance(module, MergingBlocks):
        return [module.get_submodule(name) for name in module.names]
    return list(module.children())


def _holds_blocks(module: nn.Module, kinds: Counter[type[nn.Module]]) -> bool:
    """Whether a list that is a part of a module holds several blocks of one class."""
    lists = [[type(part) for part in _inside(child)] for child in module.children() if isinstance(child, LISTS)]
    return any(kinds[kind] and parts.count(kind) > 1 for parts in lists for kind in parts)


def _has_parts(module: nn.Module) -> bool:
    """Whether there are parameters in the children of a module."""
    return any(True for child in module.children() for _ in child.parameters())
