"""The Pareto figure: its artists have the table's numbers, its error bars are the spread, and the front is right."""

import io
from statistics import stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.study.compare.outputs import records
from engine.study.pareto.figure import FEW, pareto_figure
from engine.study.pareto.front import front
from engine.study.pareto.style import colours, style_of
from engine.study.points import COSTS, Point
from models.settings import UserError


def point(name, scores, gmacs, model="vit", method="tome", budget="r = 8", line=None):
    named = {f"seed {i}": score for i, score in enumerate(scores)}
    return Point(name, model, method, budget, "top1", named, {"gmacs": gmacs}, line=line)


def artists(figure):
    """The drawn artists by their gid: ("point a", its marker), ("line b", ...), ("front", ...)."""
    (axes,) = figure.axes
    markers = {box.lines[0].get_gid(): box for box in axes.containers}
    return {**{line.get_gid(): line for line in axes.lines if line.get_gid()}, **markers}


def texts(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.texts]


POINTS = [
    point("plain", [0.7, 0.72], 1.3, method=None, budget=None, line="deit"),
    point("r 8", [0.69, 0.70, 0.74], 0.9, line="deit"),
    point("r 13", [0.66], 0.7, budget="r = 13", line="deit"),
    point("_pool $x$", [0.5], 0.8, method="pool", model="hybrid"),
]


def test_points_lines_and_bars_have_the_tables_numbers():
    found = artists(pareto_figure(POINTS))
    for row, own in zip(records(POINTS), POINTS, strict=True):
        marker, caps, bars = found[f"point {own.name}"].lines
        assert (list(marker.get_xdata()), list(marker.get_ydata())) == ([row["gmacs"]], [row["score_percent"]])
        if len(own.scores) == 1:
            assert not bars
            continue
        ((low, high),) = (segment[:, 1] for segment in bars[0].get_segments())
        half = 100 * stdev(own.scores.values())
        assert (low, high) == pytest.approx((row["score_percent"] - half, row["score_percent"] + half))
        assert half == pytest.approx(row["score_std_percent"]) and len(caps) == 2
    line = found["line deit"]
    assert list(line.get_xdata()) == [0.7, 0.9, 1.3]
    assert list(line.get_ydata()) == pytest.approx([66, 71, 71])
    drawn_front = found["front"]
    assert list(drawn_front.get_xdata()) == [0.7, 0.9] and drawn_front.get_drawstyle() == "steps-post"


def test_unmerged_points_are_hollow_and_labels_say_what_is_what():
    figure = pareto_figure(POINTS)
    found = artists(figure)
    assert found["point plain"].lines[0].get_markerfacecolor() == "white"
    assert found["point r 8"].lines[0].get_markerfacecolor() != "white"
    assert sorted(texts(figure)) == sorted(["no merging", "r = 8", "r = 13", " _pool $x$"])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["vit", "hybrid", "tome", "pool", "no merging", "Pareto front"]
    caption = figure.get_suptitle()
    assert "standard deviation over seeds and folds, n = 2 to 3; none where n = 1" in caption
    assert "without error bars" in pareto_figure(POINTS[2:]).get_suptitle()


def test_of_many_points_those_of_the_front_have_their_names():
    many = [point(f"m{i}", [0.5 + 0.01 * i], 1.0 + i % 7) for i in range(FEW + 2)]
    assert texts(pareto_figure(many)) == [f"m{i}" for i in range(7, 14)]


def test_models_have_colours_and_one_models_methods_have_them_instead():
    style = style_of(POINTS)
    assert not style.by_method and style.colour(POINTS[0]) == style.colour(POINTS[1]) != style.colour(POINTS[3])
    assert style.marker(POINTS[1]) != style.marker(POINTS[3])
    of_one = [point("a", [0.5], 1.0), point("b", [0.6], 1.0, method="pool"), point("c", [0.6], 1.0, method=None)]
    style = style_of(of_one)
    assert style.by_method and len({style.colour(one) for one in of_one}) == 3


def test_what_is_not_drawn_is_said():
    untested = Point("untested", "vit", None, None, "top1", {}, {"gmacs": 1.0})
    uncounted = point("uncounted", [0.5], None)
    figure = pareto_figure([*POINTS, uncounted])
    assert "not drawn: 1 row without GMACs or a score: uncounted" in figure.get_suptitle()
    assert "not drawn: 2 rows" in pareto_figure([*POINTS, uncounted, untested]).get_suptitle()
    with pytest.raises(UserError, match="--cost ms: no row has ms per image and a score; use gmacs"):
        pareto_figure(POINTS, "ms")
    with pytest.raises(UserError, match="compare other runs"):
        pareto_figure([uncounted, untested])


SCALES = [((1, 19), "linear"), ((1, 25), "log"), ((0, 25), "linear"), ((1e-4, 9), "log")]


@pytest.mark.parametrize("costs, scale", SCALES)
def test_the_axis_is_logarithmic_where_the_range_asks_for_it(costs, scale):
    figure = pareto_figure([point(str(cost), [0.5], cost) for cost in costs])
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


def test_labels_do_not_cover_each_other():
    grid = [point(f"a name of forty letters, number {i:09}", [0.5 + 0.05 * (i % 3)], 1 + i // 3) for i in range(9)]
    figure = pareto_figure(grid)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 9
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])


costs_and_scores = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 3.0, None]), st.sampled_from([0.1, 0.2, 0.3, 0.4, None])), max_size=12
)


@settings(deadline=None)
@given(costs_and_scores)
def test_the_front_is_what_no_point_beats(rows):
    points = [point(str(i), [] if score is None else [score], cost) for i, (cost, score) in enumerate(rows)]
    usable = [one for one in points if one.score is not None and one.costs["gmacs"] is not None]

    def beats(one, other):
        pair = (one.costs["gmacs"] <= other.costs["gmacs"], one.score >= other.score)
        return all(pair) and (one.costs["gmacs"], one.score) != (other.costs["gmacs"], other.score)

    found = front(points)
    assert {one.name for one in found} == {one.name for one in usable if not any(beats(other, one) for other in usable)}
    assert [one.costs["gmacs"] for one in found] == sorted(one.costs["gmacs"] for one in found)
    assert [one.score for one in found] == sorted(one.score for one in found)


def test_every_cost_can_be_an_axis():
    for key, title in COSTS.items():
        one = Point("a", "vit", None, None, "top1", {"seed 0": 0.5}, {key: 2.0})
        assert pareto_figure([one], key).axes[0].get_xlabel() == title


@pytest.mark.parametrize("count", [0, 1, 8, 9, 40])
def test_colours_differ_however_many_there_are(count):
    assert len(set(colours(count))) == count
