"""What `wrap` has to know about a family of models and a kind of block. The tables of them are in families.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..contract import Grid
from ..tokens import Tokens

# Rows and columns of patches (None for a model that was built for no image size), and whether every image has them.
Layout = Callable[[], tuple[Grid | None, bool]]


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps what merging has to know."""

    blocks: str  # path of the container of its blocks
    width: Callable[[Any], int]  # of a token
    prefix: Callable[[Any], int]  # number of leading tokens that are not patches
    class_token: Callable[[Any], bool]  # whether the first of them is a class token
    layout: Callable[[Any], Layout]
    image_size: Callable[[Any], tuple[int, int]]  # height and width that the model was built for


@dataclass(frozen=True)
class Kind:
    """A kind of block: its equations with merging, and the parts that these equations use."""

    run: Callable[..., tuple[Tensor, Tokens]]  # see equations.py
    attention: tuple[str, tuple[type[nn.Module], ...]]  # name of its attention, and the classes that it may have
    parts: frozenset[str]
    attention_parts: frozenset[str]
    head_dim: Callable[[Any], int]  # width of a head, from the attention
    options: frozenset[str] = frozenset()  # arguments besides x that it accepts after a merge
    by_weight: Callable[[Any], str] = lambda attn: ""  # the attention's projection that is never called; "": none
    adaptable: tuple[str, ...] = ()  # layers that LoRA can be added to instead
    positional: tuple[str, ...] = ()  # names of its arguments after x
