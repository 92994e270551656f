"""Altair and Vega-Lite, as the charts of the page need them: an extra that may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from models.settings import UserError

# Ten colours that are told apart on white and on black (Observable's, as in D3), then ten of Tableau's.
COLOURS = (
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"),
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
STATIC_WIDTH = 760  # pixels, of the picture that is shown until, or without, JavaScript
LEGEND_LIMIT = 220  # pixels, of a text in a legend
FONT = "system-ui, sans-serif"
NEEDED = {"altair": "altair", "vl_convert": "vl-convert-python", "jinja2": "jinja2"}


def demand_libraries(option: str) -> None:
    """Checks that the libraries of the page are installed.

    Args:
        option: the option that needs them, for the error.

    Raises:
        UserError: one is missing.
    """
    for module, package in NEEDED.items():
        if find_spec(module) is None:
            raise UserError(f"{option}: needs {package}; pip install -e '.[page]'")


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Returns a colour for each name, in the order of the names; they repeat after twenty."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def finished(chart: Any, height: int, names: Sequence[str]) -> dict[str, Any]:
    """Returns the Vega-Lite specification of a chart that is as wide as the page.

    Text and lines have the colour of the page's text, so that the chart follows a light and a dark page.

    Args:
        chart: an Altair chart.
        height: of the plot, pixels.
        names: the entries of its legends; the longest decides how many stand side by side.
    """
    quiet = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12}
    axis = {
        **quiet,
        "domainColor": "currentColor",
        "domainOpacity": 0.4,
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "ticks": False,
        "labelPadding": 6,
        "titleFontWeight": "normal",
        "titlePadding": 10,
    }
    legend = {**quiet, "orient": "bottom", "titleFontWeight": "bold", "labelLimit": LEGEND_LIMIT, "symbolLimit": 40}
    config = {
        "font": FONT,
        "background": "transparent",
        "view": {"stroke": None},
        "axis": axis,
        "legend": {**legend, **_stacked(names)},
        "text": {"color": "currentColor"},
    }
    chart = chart.properties(width="container", height=height, autosize={"type": "fit-x", "contains": "padding"})
    return {**chart.to_dict(), "config": config, "usermeta": {"entry": _width(names)}}


def _stacked(names: Sequence[str]) -> dict[str, Any]:
    """Legends one below the other, with as many columns as fit into the static picture; the page's script adapts it."""
    return {
        "columns": max(1, STATIC_WIDTH // _width(names)),
        "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
        "symbolBaseFillColor": "currentColor",
        "symbolBaseStrokeColor": "currentColor",
    }


def _width(names: Sequence[str]) -> int:
    """The width of a legend's entry, pixels."""
    return 40 + min(LEGEND_LIMIT, 7 * max(map(len, names)))


def static_svg(spec: dict[str, Any]) -> str:
    """Returns a specification drawn as SVG."""
    import vl_convert

    return vl_convert.vegalite_to_svg({**spec, "width": STATIC_WIDTH}, vl_version=_vega_lite())


def javascript() -> str:
    """Returns Vega-Lite, Vega and Vega-Embed as one script, for a <script> element."""
    import vl_convert

    return vl_convert.javascript_bundle(vl_version=_vega_lite()).replace("</script", "<\\/script")


def _vega_lite() -> str:
    """The version of Vega-Lite that Altair writes, as vl-convert names it."""
    from altair import SCHEMA_VERSION

    return "_".join(SCHEMA_VERSION.split(".")[:2])
