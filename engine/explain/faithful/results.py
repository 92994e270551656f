"""The results of an evaluation: faithfulness.json, and table.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.explain.faithful.evaluation import Pair, Plan
from engine.explain.faithful.measures import Score
from engine.files import write_json_atomic, write_text_atomic
from engine.measure.paired import paired_bootstrap
from engine.study.zeroshot.ways import UNMERGED
from engine.tables import Column, markdown
from engine.wording import counted


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over images, values (N,)."""
    found = paired_bootstrap(values, np.zeros_like(values))
    assert found.low is not None and found.high is not None
    return found.low, found.high


def write_results(plan: Plan, pairs: Sequence[Pair], out: Path) -> str:
    """Writes faithfulness.json and table.md. Returns the table."""
    rows = list(_rows(plan.scores, pairs))
    count = len(pairs[0].scores)
    record = {"name": plan.settings.name, "images": count, "steps": plan.steps, "measures": list(plan.measures)}
    write_json_atomic(out / "faithfulness.json", {**record, "rows": rows})
    columns = [Column("merging", words=True), Column("explanation", words=True)]
    for score in plan.scores:
        columns += [Column(score.title), Column("95 % interval")]
    table = markdown(columns, [_cells(plan.scores, row) for row in rows])
    steps = f", {plan.steps} steps" if "areas" in plan.measures else ""
    note = f"{counted(count, 'image')}{steps}. {_good(plan.scores)}"
    write_text_atomic(out / "table.md", f"{table}\n\n{note}\n")
    return table


def _good(scores: Sequence[Score]) -> str:
    """A sentence: which numbers of a good explanation are small, and which are large."""
    sizes = []
    for size, large in (("small", False), ("large", True)):
        titles = [score.title for score in scores if score.large is large]
        if titles:
            sizes.append(f"a {size} " + " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]])))
    return f"A good explanation has {(', and ' if len(scores) > 2 else ' and ').join(sizes)}."


def _rows(scores: Sequence[Score], pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """Numbers of each pair.

    A lead is the difference to the random map over the same images, "lead" of insertion; a change is what merging makes
    of a lead, over the same images.
    """
    random = {pair.way: pair.scores for pair in pairs if pair.method == "random map"}
    unmerged = {pair.method: pair.scores - random[UNMERGED] for pair in pairs if pair.way == UNMERGED}
    for pair in pairs:
        row: dict[str, Any] = {"way": pair.way, "method": pair.method, "probability": pair.start}
        for position, score in enumerate(scores):
            values = pair.scores[:, position]
            difference = values - random[pair.way][:, position]
            lead = "lead" if score.name == "insertion" else f"{score.name}_lead"
            row |= {score.name: float(values.mean()), f"{score.name}_interval": interval(values)}
            row |= {lead: float(difference.mean()), f"{lead}_interval": interval(difference)}
            if pair.way != UNMERGED and pair.method != "random map":
                change = difference - unmerged[pair.method][:, position]
                row |= {f"{score.name}_change": float(change.mean()), f"{score.name}_change_interval": interval(change)}
        yield row


def _cells(scores: Sequence[Score], row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    cells = [row["way"], row["method"]]
    for score in scores:
        low, high = row[f"{score.name}_interval"]
        cells += [f"{row[score.name]:.3f}", f"{low:.3f} to {high:.3f}"]
    return cells
