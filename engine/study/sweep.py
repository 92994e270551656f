"""One run evaluated with several ways of merging: a row each of accuracy, cost and speed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cost.macs import measure
from engine.measure.ensembles import evaluate_run
from engine.runs.restore import load_run, read_settings
from engine.settings.layers import parse_overrides
from engine.tasks import title_of
from models.interface import merging_method, removed_per_block, tokens_per_block
from models.settings import UserError

EXAMPLE = "write a key of merge: and a list of values, as in merge.r=[0,4,8]"


def values_of(item: str) -> tuple[str, list[Any]]:
    """What a sweep is over: `merge.r=[0,4,8]` -> the key "merge.r" and its values.

    Raises:
        UserError: it is not of that form.
    """
    values: Any = parse_overrides([item])
    path = []
    while isinstance(values, dict) and len(values) == 1:
        ((key, values),) = values.items()
        path.append(key)
    if path[:2] != ["model", "merge"] or len(path) < 3:
        raise UserError(f"--sweep {item}: only merging can differ from what was trained; {EXAMPLE}")
    if not (isinstance(values, list) and values):
        raise UserError(f"--sweep {item}: no list of values; {EXAMPLE}")
    return ".".join(path[1:]), values


def sweep(folder: Path, item: str, overrides: Sequence[str] = (), which: str = "best", split: str = "test") -> list:
    """Evaluates a run once for each value of one key of its `merge:` section. The data are loaded once.

    Args:
        folder: the run's.
        item: the key and its values, such as "merge.r=[0,4,8]".
        overrides: of other settings.
        which: of the run's checkpoints.
        split: which images.

    Returns:
        For each value a dict of `value`, `method`, `removed` by each block, `tokens` left after the last, `gmacs`,
        `loss`, `metric`: the name of the main one, the metrics as fractions, and `images_per_second`: of evaluation as
        a whole, after a batch to warm up.

    Raises:
        UserError: a value that is none, before anything is evaluated; no run, or one that does not fit.
    """
    key, values = values_of(item)
    changes = [[*overrides, f"{key}={json.dumps(value)}"] for value in values]
    for change in changes:
        read_settings(folder, change)
    rows, data = [], None
    for value, change in zip(values, changes):
        run = load_run(folder, change, which, data)
        data = run.data
        evaluate_run(run, split, first=1)
        start = time.perf_counter()
        found = evaluate_run(run, split)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "value": value,
                "method": merging_method(run.settings.model),
                "removed": removed_per_block(run.model),
                "tokens": tokens_per_block(run.model)[-1],
                "gmacs": measure(run.model, settings=run.settings.model).macs / 1e9,
                "loss": found.loss,
                "metric": run.data.task.main_metric,
                **found.metrics,
                "images_per_second": found.n / seconds,
            }
        )
    return rows


def written(value: Any) -> str:
    """A value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def markdown(key: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    metric = rows[0]["metric"]
    header = [key, "tokens left", "GMACs", f"{title_of(metric)}, %", "loss", "images/s"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for row in rows:
        lines.append(
            [
                written(row["value"]),
                str(row["tokens"]),
                f"{row['gmacs']:.4f}",
                f"{100 * row[metric]:.2f}",
                f"{row['loss']:.4f}",
                f"{row['images_per_second']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
