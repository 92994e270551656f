"""What a method answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Found(NamedTuple):
    """What a method may answer in place of a map, where it has more to say."""

    relevance: Tensor  # (B, rows, columns)
    notes: Sequence[Mapping[str, Any]]  # for each image, such as {"r2": 0.8}
