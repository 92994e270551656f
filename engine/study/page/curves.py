"""The curves of the page: loss and accuracy of runs over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.runs.records.metrics import metrics_of
from engine.study.page.charts import colours_of, finished
from engine.study.page.run_parts import Run
from engine.tasks import title_of

HEIGHT = 260  # pixels
MOST = 60  # largest number of points of a line; of longer runs some are left out
LOSS, SCORE = "loss", "score"
PHASES = {"training": [4, 3], "validation": [1, 0]}  # how their lines are dashed


def curves(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Returns the Vega-Lite specifications of loss and score by epoch; without those of which no run has numbers."""
    rows = [row for run in runs for row in rows_of(run)]
    metrics = " or ".join(dict.fromkeys(title_of(run.results.metric) for run in runs))
    titles = {LOSS: "loss", SCORE: f"{metrics}, %"}
    drawn = {field: [row for row in rows if row.get(field) is not None] for field in titles}
    return {field: _chart(drawn[field], field, title) for field, title in titles.items() if drawn[field]}


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Returns the numbers of a run's metrics.jsonl that are drawn, each with its run, row, phase and epoch.

    Scores are percent. Training numbers are means over the steps since the line before, on augmented images. A number
    is lone if its line has no other.
    """
    steps = run.results.steps / max(run.results.epochs, 1)  # of an epoch
    records = metrics_of(run.folder.metrics_file)
    metric = run.results.metric
    tags = {"training": ("train/loss", "train/accuracy"), "validation": ("val/loss", f"val/{metric}")}
    rows = []
    for phase, (loss, score) in tags.items():
        found = [record for record in records if record.get(loss) is not None]
        for record in thinned(found, MOST):
            row = {"run": run.title, "row": run.point, "phase": phase, "lone": len(found) == 1}
            row["epoch"] = round(record["step"] / steps, 3)
            rows.append({**row, LOSS: _rounded(record, loss), SCORE: _rounded(record, score, 100)})
    return rows


def thinned(records: Sequence[Any], most: int) -> list[Any]:
    """Returns at most `most` of the records, evenly spaced, the first and the last among them."""
    if len(records) <= most:
        return [*records]
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]


def _rounded(record: Mapping[str, Any], tag: str, unit: float = 1) -> float | None:
    value = record.get(tag)
    return None if value is None else float(f"{unit * value:.5g}")


def _chart(rows: Sequence[dict[str, Any]], field: str, title: str) -> dict[str, Any]:
    import altair as alt

    colours = colours_of([row["row"] for row in rows])
    chosen = alt.selection_point(name="chosen", fields=["row"], bind="legend")
    faded = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.12))
    base = alt.Chart(alt.InlineData(values=[{key: row[key] for key in (*KEYS, field)} for row in rows])).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, tickCount=8)),
        y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False)),
        detail="run:N",
        color=alt.Color(
            "row:N",
            title="row",
            legend=alt.Legend(symbolOpacity=1),
            scale=alt.Scale(domain=[*colours], range=[*colours.values()]),
        ),
    )
    dashes = alt.Scale(domain=[*PHASES], range=[*PHASES.values()])
    dash = alt.StrokeDash("phase:N", legend=None, scale=dashes)
    lines = base.mark_line(strokeWidth=1.6).encode(strokeDash=dash, strokeOpacity=faded)
    tooltip = [alt.Tooltip(f"{key}:N", title=key) for key in ("run", "phase")]
    tooltip += [alt.Tooltip("epoch:Q", format=".4~g"), alt.Tooltip(f"{field}:Q", title=title, format=".4~g")]
    dots = base.mark_circle(size=120, opacity=0.001).encode(tooltip=tooltip)  # a place to point at
    lone = base.transform_filter("datum.lone").mark_circle(size=40).encode(opacity=faded)  # of a single epoch: no line
    return finished(alt.layer(lines, lone, dots.add_params(chosen)), HEIGHT, [*colours])


KEYS = ("run", "row", "phase", "lone", "epoch")
