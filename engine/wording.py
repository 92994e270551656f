"""Names and lists in words, for the terminal and for errors."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 3  # files, or other things, that an error names


def shown(name: str) -> str:
    """A name as it can stand on a terminal: one that has line ends or other such characters is quoted."""
    return name if name.isprintable() else repr(name)


def few(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
