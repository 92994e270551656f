"""What a study leaves when its runs have ended: the comparison of those that are done."""

from __future__ import annotations

from pathlib import Path

from engine.files import write_text_atomic
from engine.study.plan.folders import Placing
from engine.study.table import compare, table
from engine.tables import markdown, print_table
from models.settings import UserError


def write_outputs(folder: Path, placing: Placing) -> list[str]:
    """Prints the comparison of the finished runs of a study, and writes it into the study folder.

    Returns:
        Lines on folders that were left out.
    """
    left_out = [f"left out, damaged: {problem}" for problem in placing.damaged.values()]
    left_out += [f"left out: {placed.problem}" for placed in placing.runs if placed.problem]
    done = [placed.folder.path for placed in placing.runs if placed.state == "done"]
    if not done:
        return left_out
    try:
        columns, cells = table(compare(done))
    except UserError as error:
        return [*left_out, f"no comparison: {error}"]
    print_table(columns, cells)
    write_text_atomic(folder / "table.md", markdown(columns, cells) + "\n")
    return left_out
