"""The figure of the page: accuracy against each cost, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.study.compare.columns import COST_NUMBERS, MISSING, repetitions, score_percent, score_text, spread_percent
from engine.study.page.charts import colours_of, finished
from engine.study.pareto.front import front
from engine.study.pareto.style import UNMERGED, style_of
from engine.study.points import COSTS, Point
from engine.tasks import title_of

HEIGHT = 400  # pixels
LABELLED = 12  # largest number of points whose names are written beside them
NARROW = 440  # width of the plot, pixels, up to which they are not
WIDE = 20  # how many times larger the largest cost is than the smallest where the axis is logarithmic
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left")


def figures(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Returns the Vega-Lite specification of accuracy against each cost that a point has, by the cost's key."""
    return {key: _figure(points, key) for key in COSTS if _with(points, key)}


def missing(points: Sequence[Point], key: str) -> int:
    """Returns the number of points that do not have a cost, and are not drawn."""
    return len(points) - len(_with(points, key))


def _figure(points: Sequence[Point], key: str) -> dict[str, Any]:
    import altair as alt

    drawn = _with(points, key)
    costs = [point.costs[key] for point in drawn]
    logarithmic = min(costs) > 0 and max(costs) > WIDE * min(costs)
    rows, best = _rows(drawn, key, logarithmic), front(drawn, key)
    title = COSTS[key] + (" (logarithmic)" if logarithmic else "")
    x = alt.X(
        "x:Q",
        title=title,
        axis=alt.Axis(
            tickCount=8,
            labelOverlap="greedy",
            labelSeparation=8,
            labelFlush=False,
            labelExpr="datum.value < 0 ? '' : datum.label",  # the axis begins a little before the first point
        ),
        scale=alt.Scale(**_cost_scale(costs, logarithmic)),
    )
    metrics = " or ".join(dict.fromkeys(title_of(point.metric) for point in drawn))
    score_title = f"test {metrics}, %"
    y = alt.Y("score:Q", title=score_title, scale=alt.Scale(zero=False, nice=False, padding=24))
    colours = colours_of([row["group"] for row in rows])
    colour = alt.Color(
        "group:N", title=_colour_title(points), scale=alt.Scale(domain=[*colours], range=[*colours.values()])
    )
    chosen = alt.selection_point(name="chosen", fields=["group"], bind="legend")
    faded = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.15))
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=colour)
    marks = base.mark_point(filled=True, size=90, opacity=1, cursor="pointer").encode(
        y=y, opacity=faded, tooltip=_tooltip(drawn)
    )
    shapes = _shapes(drawn)
    if shapes:
        scale = alt.Scale(domain=[*shapes], range=[*shapes.values()])
        marks = marks.encode(shape=alt.Shape("method:N", title="merging", scale=scale))
    stairs = alt.Chart(alt.InlineData(values=_stairs(best, key))).encode(x=x, y=y)
    layers = [stairs.mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.2, color="currentColor")]
    if any(row["line"] is not None for row in rows):
        joined = base.transform_filter("datum.line != null")
        layers.append(joined.mark_line(strokeWidth=1.6).encode(y=y, detail="line:N", strokeOpacity=faded))
    if any(row["low"] is not None for row in rows):
        spread = base.transform_filter("datum.low != null")
        layers.append(
            spread.mark_rule(strokeWidth=1.6).encode(
                y=alt.Y("low:Q", title=score_title), y2="high:Q", strokeOpacity=faded
            )
        )
    layers.append(marks.add_params(chosen))
    if len(rows) <= LABELLED:
        layers += [_labels(base.encode(y=y), side) for side in ("left", "right")]
    return finished(alt.layer(*layers).resolve_scale(shape="independent"), HEIGHT, [*colours, *shapes])


def _cost_scale(costs: Sequence[float], logarithmic: bool) -> dict[str, Any]:
    """Returns the options of the axis of costs."""
    least, most = min(costs), max(costs)
    if least == most:  # Vega-Lite would draw one tick, rounded
        return {"domain": [0.5 * least, 1.5 * least] if least else [-1, 1]}
    return {"nice": False, "padding": 24, **({"type": "log"} if logarithmic else {"zero": False})}


def _labels(base: Any, side: str) -> Any:
    """Names beside the points: on the right of those in the left half of the figure, else on the left."""
    import altair as alt

    right = side == "right"
    text = base.transform_filter(f"datum.side == '{side}'").mark_text(
        align="left" if right else "right",
        dx=8 if right else -8,
        dy=-9,
        fontSize=11,
        fillOpacity=alt.expr(f"width > {NARROW} ? 1 : 0"),
    )
    return text.encode(text="label:N", color=alt.value("currentColor"))


def _rows(points: Sequence[Point], key: str, logarithmic: bool) -> list[dict[str, Any]]:
    """Returns what is drawn of each point; numbers in tooltips are text, as in the table."""
    by_method = style_of(points).by_method
    costs = [math.log(point.costs[key]) if logarithmic else point.costs[key] for point in points]
    middle = (min(costs) + max(costs)) / 2
    rows = []
    for point, cost in zip(points, costs):
        score, spread = score_percent(point), spread_percent(point)
        rows.append(
            {
                "x": point.costs[key],
                "score": score,
                "low": None if spread is None else score - spread,
                "high": None if spread is None else score + spread,
                "name": point.name,
                "model": point.model,
                "method": point.method or UNMERGED,
                "budget": point.budget or MISSING,
                "line": point.line,
                "group": (point.method or UNMERGED) if by_method else point.model,
                "label": point.budget if point.line is not None and point.budget else point.name,
                "side": "right" if cost <= middle else "left",
                "shown": f"{score_text(point)} %",
                "runs": repetitions(point),
                **{f"{cost}_": _shown(point, cost) for cost in COSTS},
            }
        )
    return rows


def _tooltip(points: Sequence[Point]) -> list[Any]:
    import altair as alt

    titles = {"name": "name", "model": "model", "method": "merging", "budget": "budget", "shown": "score"}
    titles |= {f"{key}_": title for key, title in COSTS.items() if _with(points, key)}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in {**titles, "runs": "seeds"}.items()]


def _stairs(best: Sequence[Point], key: str) -> list[dict[str, float]]:
    return [{"x": point.costs[key], "score": score_percent(point)} for point in best]


def _shapes(points: Sequence[Point]) -> dict[str, str]:
    """Returns a shape for each method, where the colour does not tell methods apart already."""
    methods = [*dict.fromkeys(point.method or UNMERGED for point in points)]
    if style_of(points).by_method or len(methods) < 2:
        return {}
    return {method: SHAPES[i % len(SHAPES)] for i, method in enumerate(methods)}


def _colour_title(points: Sequence[Point]) -> str:
    return "merging" if style_of(points).by_method else "model"


def _with(points: Sequence[Point], key: str) -> list[Point]:
    """The points that have a cost and a score."""
    return [point for point in points if point.costs.get(key) is not None and point.score is not None]


def _shown(point: Point, key: str) -> str:
    cost = point.costs.get(key)
    return MISSING if cost is None else COST_NUMBERS[key].text(cost)
