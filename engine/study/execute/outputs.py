"""What a study leaves when its runs have ended: the comparison of those that are done, as table, figure and page."""

from __future__ import annotations

import shlex
from pathlib import Path

from engine.study.compare import differences, outputs
from engine.study.compare.reading import read
from engine.study.page.page import plans_of, write_page
from engine.study.plan.folders import Placing
from engine.tables import print_table
from models.settings import UserError


def write_outputs(folder: Path, placing: Placing) -> list[str]:
    """Prints the comparison of a study, and writes it into the study folder.

    Returns:
        Lines on folders that were left out, and on what was written.
    """
    notes = [f"left out, damaged: {problem}" for problem in placing.damaged.values()]
    if not any(placed.state == "done" for placed in placing.runs):
        problems = [f"left out, damaged: {placed.problem}" for placed in placing.runs if placed.problem]
        return [*notes, *problems, "no run is done: nothing to compare"]
    try:
        comparison = read([folder])
    except UserError as error:
        return [*notes, f"no comparison: {error}"]
    points, notes = comparison.points, [*notes, *comparison.notes]
    pairs = differences.differences(points, notes.append) if len(points) <= differences.FEW else []
    print_table(*outputs.table(points))
    if pairs:
        print()
        print_table(*differences.table(pairs))
        notes = [*differences.explanation(pairs), *notes]
    outputs.write_csv(points, folder / "table.csv")
    outputs.write_markdown(points, folder / "table.md", notes, pairs)
    outputs.write_json(points, folder / "table.json", notes, pairs)
    from engine.figures.drawing import save_figure
    from engine.study.pareto.figure import pareto_figure

    for name, write in (
        ("pareto.png", lambda file: save_figure(pareto_figure(points, "gmacs"), file)),
        ("page.html", lambda file: write_page(points, file, pairs=pairs, notes=notes, **_origin(folder, file))),
    ):
        try:
            write(folder / name)
        except UserError as error:  # a library that is not installed, or nothing to draw: the tables are there
            notes.append(f"no {name}: {error}")
    return notes


def _origin(folder: Path, file: Path) -> dict[str, str]:
    """Returns what the page says of its origin: the command that writes it again, and the plan."""
    command = shlex.join(["tools/compare.py", str(folder), "--html", str(file)])
    return {"command": command, "plan": plans_of([folder])}
