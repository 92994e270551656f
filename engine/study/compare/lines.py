"""Which points are one model with several budgets, and names for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from engine.study.table import common_name


def line_names(kinds: Sequence[Hashable], names: Sequence[str], methods: Sequence[str | None]) -> list[str | None]:
    """Returns the line of each of N points: a text that only points of equal kind share; None for a kind of its own.

    Args:
        kinds: equal for points that differ only in their budget.
        names: the points' names, of which a line's name is the common beginning.
        methods: the merging method of each point, which tells apart lines that would have one name.
    """
    members: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        members.setdefault(kind, []).append(i)
    several = {kind: group for kind, group in members.items() if len(group) > 1}
    titles = {
        kind: re.sub(r"[,_-] ?r?$", "", common_name([names[i] for i in group])) for kind, group in several.items()
    }
    if len(set(titles.values())) < len(titles):
        for kind, group in several.items():
            if method := next((methods[i] for i in group if methods[i]), None):
                titles[kind] += f", {method}"
    lines = dict(zip(titles, unique(list(titles.values()))))
    return [lines.get(kind) for kind in kinds]


def unique(names: Sequence[str]) -> list[str]:
    """Returns names of which none occurs twice: "vit", "vit" becomes "vit", "vit (2)"."""
    taken, seen, result = set(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        number, own = seen[name], name
        while number > 1 and own in taken:
            own = f"{name} ({number})"
            number += 1
        taken.add(own)
        result.append(own)
    return result
