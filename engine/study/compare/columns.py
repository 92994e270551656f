"""The columns of a comparison: the same for the table, CSV, Markdown, JSON and the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.study.points import COSTS, Point
from engine.study.table import COLUMNS, Number, number, percent
from engine.tasks import title_of
from engine.wording import NOT_COUNTED, shown

MISSING = "-"
COST_NUMBERS: dict[str, Number] = {
    "gmacs": number(4),
    "ms": number(3),
    "memory_mib": number(0),
    "params_m": number(3),
    "saved_mib": number(2),
}
EXTRA_NUMBERS = {column.title: column.shows for column in COLUMNS.values() if column.shows}

Value = str | float | None


@dataclass(frozen=True)
class PointColumn:
    """A column of a comparison.

    Attributes:
        key: its name in CSV and JSON, which ends with the unit, such as "score_percent".
        title: its title in a table, with the unit.
        words: whether the values are words instead of numbers.
        value: the value of a point in the title's unit, with full precision; None if it is missing.
        text: the value of a point as the table shows it.
        optional: whether a table leaves the column out if no point has a value.
    """

    key: str
    title: str
    words: bool
    value: Callable[[Point], Value]
    text: Callable[[Point], str]
    optional: bool = True


def columns_of(points: Sequence[Point]) -> list[PointColumn]:
    """Returns all columns of a comparison, from left to right; those of `extra` stand behind the others."""
    metrics = " or ".join(dict.fromkeys(title_of(point.metric) for point in points))
    titles = list(dict.fromkeys(title for point in points for title in point.extra))
    split = COLUMNS["method"].title
    first = titles[: titles.index(split) + 1] if split in titles else titles
    return [
        _words("name", "run", lambda point: point.name, optional=False),
        PointColumn("repetitions", "seeds", False, lambda point: len(point.scores), repetitions, optional=False),
        PointColumn("score_percent", f"test {metrics}, %", False, score_percent, score_text, optional=False),
        _words("model", "model", lambda point: point.model, optional=False),
        _words("merging", "merging", lambda point: point.method),
        _words("budget", "budget", lambda point: point.budget),
        *(_cost(key) for key in ("gmacs", "ms")),
        *(_extra(title, points) for title in first),
        *(_cost(key) for key in COSTS if key not in ("gmacs", "ms")),
        *(_extra(title, points) for title in titles if title not in first),
    ]


def shown_columns(points: Sequence[Point]) -> list[PointColumn]:
    """Returns the columns that a table shows: those in which a point has a value; the data only where they differ."""
    columns = []
    for column in columns_of(points):
        values = {column.value(point) for point in points}
        if column.optional and (values == {None} or (column.key == "data" and len(values) == 1)):
            continue
        columns.append(column)
    return columns


def score_percent(point: Point) -> float | None:
    """Returns the mean score in percent."""
    return None if point.score is None else 100 * point.score


def spread_percent(point: Point) -> float | None:
    """Returns the sample standard deviation of the scores in percent."""
    return None if point.spread is None else 100 * point.spread


def score_text(point: Point) -> str:
    """Returns the score as tables show it, such as "92.00 ± 2.83"."""
    return _with_spread(percent, score_percent(point), spread_percent(point))


def repetitions(point: Point) -> str:
    """Returns the number of seeds and folds, such as "3" or "3 x 5 folds"."""
    return point.repetitions or str(len(point.scores))


def key_of(title: str) -> str:
    """Returns a title as a key of CSV and JSON: "images/s" -> "images_per_s", "agreement, %" -> "agreement_percent"."""
    words = title.replace("%", " percent ").replace("/", " per ").replace("±", " std ")
    return re.sub(r"\W+", "_", words).strip("_").lower()


def _words(key: str, title: str, value: Callable[[Point], str | None], *, optional: bool = True) -> PointColumn:
    return PointColumn(key, title, True, value, lambda point: shown(value(point) or MISSING), optional)


def _cost(key: str) -> PointColumn:
    def text(point: Point) -> str:
        value = point.costs.get(key)
        missing = NOT_COUNTED if key == "gmacs" and key in point.costs else MISSING
        return missing if value is None else COST_NUMBERS[key].text(value)

    title = "ms_per_image" if key == "ms" else key
    return PointColumn(title, COSTS[key], False, lambda point: point.costs.get(key), text, key != "gmacs")


def _extra(title: str, points: Sequence[Point]) -> PointColumn:
    own = EXTRA_NUMBERS.get(title, percent if title.endswith("%") else number(2))
    words = any(isinstance(point.extra.get(title), str) for point in points)

    def text(point: Point) -> str:
        value = point.extra.get(title)
        if isinstance(value, int) and not isinstance(value, bool) and title not in EXTRA_NUMBERS:
            return str(value)
        if value is None or isinstance(value, str):
            return shown(value or MISSING)
        return _with_spread(own, value, point.spreads.get(title))

    return PointColumn(key_of(title), title, words, lambda point: point.extra.get(title), text)


def _with_spread(shows: Number, value: float | None, spread: float | None) -> str:
    if value is None:
        return MISSING
    return shows.text(value) if spread is None else f"{shows.text(value)} ± {shows.text(spread)}"
