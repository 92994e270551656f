"""The Pareto figure: accuracy against cost, with the front of what no other point beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from engine.figures.labels import place_labels
from engine.study.compare.columns import score_percent, spread_percent
from engine.study.pareto.front import front
from engine.study.pareto.style import UNMERGED, Style, style_of
from engine.study.points import COSTS, Point
from engine.tasks import title_of
from engine.wording import counted, shown
from models.settings import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 12  # largest number of points that are labelled directly
LETTERS = 40  # of a name in the figure
LOG = 20  # ratio of the largest to the smallest cost from which the axis is logarithmic
INCHES_OF_LETTER = 0.068  # of the legend's font


def pareto_figure(points: Sequence[Point], cost: str = "gmacs") -> Figure:
    """Draws accuracy, or another metric, against a cost.

    Error bars are the sample standard deviation over seeds and folds. Lines join the budgets of one model. Points
    without the cost or without a score are not drawn, and the caption counts them.

    Args:
        points: the points.
        cost: a key of COSTS.

    Raises:
        UserError: no point has both the cost and a score.
    """
    drawn = [point for point in points if point.score is not None and point.costs.get(cost) is not None]
    if not drawn:
        raise UserError(f"--cost {cost}: no row has {COSTS[cost]} and a score; {_other_cost(points, cost)}")
    style = style_of(drawn)
    few = len(drawn) <= FEW
    entries = _entries(drawn, style, few)
    letters = max((len(entry.get_label()) for entry in entries), default=0)
    figure = Figure(figsize=(6.8 + INCHES_OF_LETTER * letters, 4.6), layout="constrained")
    axes = figure.subplots()
    costs = [point.costs[cost] for point in drawn]
    _draw_front(axes, drawn, cost)
    _draw_lines(axes, drawn, cost, style)
    for point in drawn:
        _draw_point(axes, point, cost, style)
    _set_axes(axes, drawn, cost, costs)
    _add_legend(figure, entries)
    figure.suptitle(_caption(points, drawn, cost), fontsize=8, color="0.35", parse_math=False)
    named = drawn if few else front(drawn, cost)
    labels = [(point.costs[cost], score_percent(point), _label(point)) for point in named]
    place_labels(axes, list(dict.fromkeys(labels)), not few)  # a run and the value of its sweep have one label
    return figure


def _draw_front(axes: Axes, points: Sequence[Point], cost: str) -> None:
    """Draws the front as steps: the accuracy that a cost buys."""
    best = front(points, cost)
    xs, ys = [point.costs[cost] for point in best], [score_percent(point) for point in best]
    axes.plot(xs, ys, color="0.75", lw=5, alpha=0.55, drawstyle="steps-post", zorder=1, label="front", gid="front")


def _draw_lines(axes: Axes, points: Sequence[Point], cost: str, style: Style) -> None:
    """Joins the points of each line, by cost."""
    for line in dict.fromkeys(point.line for point in points if point.line is not None):
        own = sorted((point for point in points if point.line == line), key=lambda point: point.costs[cost])
        colour = style.colour(next((point for point in own if point.method is not None), own[0]))
        xs, ys = [point.costs[cost] for point in own], [score_percent(point) for point in own]
        axes.plot(xs, ys, color=colour, lw=1.1, alpha=0.8, zorder=2, gid=f"line {line}")


def _draw_point(axes: Axes, point: Point, cost: str, style: Style) -> None:
    colour = style.colour(point)
    axes.errorbar(
        [point.costs[cost]],
        [score_percent(point)],
        yerr=None if point.spread is None else [spread_percent(point)],
        marker=style.marker(point),
        color=colour,
        mfc="white" if point.method is None else colour,
        mew=1.6 if point.method is None else 0.8,
        ms=8 if point.method is None else 6,
        capsize=3,
        elinewidth=1.1,
        zorder=3,
        gid=f"point {point.name}",
    )


def _set_axes(axes: Axes, points: Sequence[Point], cost: str, costs: Sequence[float]) -> None:
    metrics = " or ".join(dict.fromkeys(title_of(point.metric) for point in points))
    axes.set(xlabel=COSTS[cost], ylabel=f"test {metrics}, %")
    axes.margins(0.09)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if min(costs) > 0 and max(costs) / min(costs) >= LOG:
        axes.set_xscale("log")
        steps = (1.0, 2.0, 5.0) if max(costs) / min(costs) < 1000 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _entries(points: Sequence[Point], style: Style, few: bool) -> list[Line2D]:
    """Returns the legend: colours of models, markers of methods, and what hollow points and the grey band are."""
    entries = []
    if len(style.colours) > 1 or not few:
        for name, colour in style.colours.items():
            marker = style.markers[name] if style.by_method else "s"
            entries.append(Line2D([], [], color=colour, marker=marker, ms=6, lw=0, label=_short(name)))
    if not style.by_method:
        for name, marker in style.markers.items():
            entries.append(Line2D([], [], color="0.4", marker=marker, ms=6, lw=0, label=_short(name)))
    if any(point.method is None for point in points):
        hollow = {"mfc": "white", "mew": 1.6, "ms": 8}
        entries.append(Line2D([], [], color="0.4", marker="o", lw=0, label="no merging", **hollow))
    entries.append(Line2D([], [], color="0.75", lw=5, alpha=0.55, label="Pareto front"))
    return entries


def _add_legend(figure: Figure, entries: Sequence[Line2D]) -> None:
    labels = [entry.get_label() for entry in entries]
    legend = figure.legend(entries, labels, frameon=False, fontsize=8, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(point: Point) -> str:
    """Returns what stands beside a point: its name, or within a line its budget."""
    return _short(point.name if point.line is None else point.budget or UNMERGED)


def _short(name: str) -> str:
    name = shown(name)
    name = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return f" {name}" if name.startswith("_") else name  # else a legend leaves it out


def _caption(points: Sequence[Point], drawn: Sequence[Point], cost: str) -> str:
    """Says what error bars are, and what was not drawn."""
    counts = sorted({len(point.scores) for point in drawn if point.spread is not None})
    if counts:
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        bars = f"error bars: standard deviation over seeds and folds, n = {n}"
        if len(drawn) > sum(point.spread is not None for point in drawn):
            bars += "; none where n = 1"
    else:
        bars = "one run each, without error bars"
    missing = [point for point in points if point not in drawn]
    if not missing:
        return bars
    why = f"without {COSTS[cost]} or a score"
    names = f": {_short(missing[0].name)}" if len(missing) == 1 else ""
    return f"{bars}\nnot drawn: {counted(len(missing), 'row')} {why}{names}"


def _other_cost(points: Sequence[Point], cost: str) -> str:
    usable = [
        key for key in COSTS if any(point.costs.get(key) is not None and point.score is not None for point in points)
    ]
    return f"use {' or '.join(usable)}" if usable else "compare other runs"
