"""`page`: the points of a comparison as one HTML file, which needs no network and no other file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.files import write_text_atomic
from engine.study.compare import differences
from engine.study.compare.differences import Pair
from engine.study.compare.reading import PLAN, is_study
from engine.study.page import figure
from engine.study.page.charts import demand_libraries, javascript, static_svg
from engine.study.page.curves import curves
from engine.study.page.mistakes import mistakes_of
from engine.study.page.run_parts import Run, differing_settings, first_runs, machines, recipes, runs_of
from engine.study.page.table import table_of
from engine.study.points import COSTS, Point
from engine.tasks import title_of
from engine.wording import counted

HERE = Path(__file__).resolve().parent
DETAILED = 24  # largest number of runs whose curves and mistakes are shown
OPEN = 2  # number of runs whose mistakes are unfolded when the page opens


def write_page(points: Sequence[Point], file: Path, **further: Any) -> None:
    """Writes the page of a comparison.

    Args:
        points: the rows, one or more.
        file: the HTML file.
        further: see `page`.

    Raises:
        UserError: a library of the extra `page` is missing, or the file cannot be written.
    """
    demand_libraries("--html")
    write_text_atomic(file, page(points, **further))


def page(
    points: Sequence[Point],
    pairs: Sequence[Pair] = (),
    notes: Sequence[str] = (),
    command: str = "",
    plan: str = "",
    title: str = "",
) -> str:
    """Returns the page of a comparison as HTML.

    Args:
        points: the rows, one or more.
        pairs: the differences between rows, as far as they were computed.
        notes: what was left out, and why.
        command: the command that makes the page.
        plan: the text of a study's plan; empty: the points are of no study.
        title: of the page; empty: one with the name of the dataset.
    """
    runs = runs_of(points)
    of_points, of_runs = _of_points(points, runs), _of_runs(runs)
    charts = of_points["figures"] or of_runs["curves"]
    sections = [
        ("figure", "Figure", of_points["figures"]),
        ("table", "Table", True),
        ("differences", "Differences", pairs),
        ("curves", "Training", of_runs["curves"]),
        ("mistakes", "Mistakes", of_runs["mistakes"]),
        ("settings", "Settings", of_runs["settings"]),
        ("machines", "Machines", runs),
        ("commands", "Commands", runs or plan or command),
    ]
    return _template().render(
        **of_points,
        **of_runs,
        sections=sections,
        title=title or _title(runs),
        differences=differences.table(pairs) if pairs else None,
        explanation=differences.explanation(pairs) if pairs else [],
        notes=notes,
        command=command,
        plan=plan,
        made=time.strftime("%Y-%m-%d"),
        vega=javascript() if charts else "",
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
    )


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE)
    return Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    ).get_template("page.html.j2")


def _of_points(points: Sequence[Point], runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what the template shows of points: the figure and the table."""
    figures = figure.figures(points)
    first = next(iter(figures), None)
    return {
        "summary": _summary(points, runs),
        "table": table_of(points),
        "figures": {key: {"title": COSTS[key], "spec": spec} for key, spec in figures.items()},
        "figure_picture": static_svg(figures[first]) if first else "",
        "missing": {key: _missing(points, key) for key in figures},
        "first": first,
        "several": any(point.spread is not None for point in points),
        "joined": any(point.line is not None for point in points),
    }


def _of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns what the template shows of single runs."""
    detailed = first_runs(runs, DETAILED)
    drawn = curves(detailed)
    names, settings = differing_settings(runs)
    return {
        "all_runs": len(runs),
        "detailed": len(detailed),
        "curves": drawn,
        "curve_pictures": {field: static_svg(spec) for field, spec in drawn.items()},
        "mistakes": mistakes_of(detailed),
        "open": OPEN,
        "setting_names": names,
        "settings": settings,
        "machines": machines(runs),
        "recipes": recipes(runs),
    }


def plans_of(paths: Sequence[Path]) -> str:
    """Returns the text of the plans of those paths that are studies."""
    files = [path / PLAN for path in paths if is_study(path)]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def _title(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(run.results.data for run in runs))
    return "Accuracy and cost" + (f" on {names[0]}" if len(names) == 1 else "")


def _summary(points: Sequence[Point], runs: Sequence[Run]) -> str:
    """Returns one sentence that says what is shown."""
    metrics = " or ".join(dict.fromkeys(title_of(point.metric) for point in points))
    images = {point.images for point in points}
    same = images.pop() if len(images) == 1 else None
    tested = f", on {same:,} images" if same else ""
    count = len({run.folder.path.resolve() for run in runs})  # a run and its sweep are several rows of one folder
    trained = f", from {counted(count, 'trained run')}," if runs else ""
    return f"Test score ({metrics}{tested}) of {counted(len(points), 'row')}{trained} and what each row costs."


def _missing(points: Sequence[Point], key: str) -> str:
    count = figure.missing(points, key)
    return (
        f"{counted(count, 'row')} without {COSTS[key]}, or without a score, {'is' if count == 1 else 'are'} not drawn."
        if count
        else ""
    )
