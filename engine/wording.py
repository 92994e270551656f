"""Names, lists and numbers as text, for the terminal and for errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

NAMED = 3  # how many files, or other things, an error lists


def shown(name: str) -> str:
    """Returns a name for the terminal; one with line breaks or other unprintable characters is quoted and escaped."""
    return name if name.isprintable() else repr(name)


def few(names: Sequence[str]) -> str:
    """Returns the first names, with "..." if there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def fixed(value: float, decimals: int) -> str:
    """Returns a number with so many decimals, or with more where it would have fewer than three significant digits.

    With four decimals 17.5638 GMACs are "17.5638", and 0.00004132 GMACs are "0.0000413".
    """
    if value:
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"
