"""Names, lists and numbers as text, for the terminal and for errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOT_COUNTED = "not counted"  # in the place of multiply-adds
NAMED = 3  # how many files, or other things, an error lists


def shown(name: str) -> str:
    """Returns a name for the terminal; one with line breaks or other unprintable characters is quoted and escaped."""
    return name if name.isprintable() else repr(name)


def few(names: Sequence[str]) -> str:
    """Returns the first few names, followed by "..." if there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def fixed(value: float, decimals: int) -> str:
    """Returns a number with the given number of decimals, or more if it would have fewer than three significant digits.

    With four decimals, 17.5638 becomes "17.5638" and 0.00004132 becomes "0.0000413".
    """
    if value and math.isfinite(value):
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a count with its noun, and its verb where it has one, in the singular or the plural.

    counted(1, "image") is "1 image", counted(2, "class") is "2 classes", and counted(1, "row has", "rows have") is
    "1 row has".

    Args:
        count: how many.
        one: what stands behind 1.
        many: what stands behind any other number; empty: `one` with its regular plural.
    """
    if count == 1:
        return f"1 {one}"
    ending = "es" if one.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count} {many or one + ending}"


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
