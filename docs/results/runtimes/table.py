#!/usr/bin/env python3
"""Writes the tables of README.md from accuracy.json, and from speed.json where there is one.

python docs/results/runtimes/table.py
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from engine.cost.speed.model.table import gains, mac_ratio, quotient, spread

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by table.py -->", "<!-- end of what is written -->"
METHODS = ("unmerged", "tome")
NAMES = {"eager": "eager", "compiled": "compiled", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
FILES = ("onnxruntime", "openvino", "nncf")  # what makes and runs the files
Row = dict[str, Any]


def of(rows: list[Row], **wanted: object) -> Row:
    """The row with these values."""
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def accuracy(record: dict[str, Any]) -> list[str]:
    """Top-1, and how often the prediction is that of the same model in eager fp32."""
    rows, targets = record["rows"], record["targets"]
    lines = [
        "| | top-1, unmerged | merged | same prediction as eager fp32, unmerged | merged |",
        "|---|---|---|---|---|",
    ]
    for runtime, precision in dict.fromkeys((row["runtime"], row["precision"]) for row in rows):
        cells = []
        for compare in (False, True):
            for method in METHODS:
                predicted = of(rows, method=method, runtime=runtime, precision=precision)["predicted"]
                eager = of(rows, method=method, runtime="eager", precision="fp32")["predicted"]
                cells.append(share(predicted, eager if compare else targets))
        lines.append(f"| {NAMES[runtime]}, {precision} | " + " | ".join(cells) + " |")
    return [*lines, "", versions(record)]


def share(one: str, other: str) -> str:
    """The share of numbers that are equal in two lists, which are separated by spaces, in %."""
    equal = [a == b for a, b in zip(one.split(), other.split(), strict=True)]
    return f"{100 * sum(equal) / len(equal):.1f}"


def speed(record: dict[str, Any]) -> list[str]:
    """For each batch size, the times of the two models, the speed-up, and the speed-up over the MAC ratio."""
    rows, lines = record["rows"], []
    for batch in dict.fromkeys(row["batch_size"] for row in rows):
        unit = "ms" if batch == 1 else "images/s"
        ratio = mac_ratio(of(rows, batch_size=batch, method="tome"), rows)
        lines += [
            f"Batch {batch}, MAC ratio {ratio:.2f}:",
            "",
            f"| | {unit}, unmerged | {unit}, merged | speed-up (min to max) | over MAC ratio |",
            "|---|---|---|---|---|",
        ]
        here = [row for row in rows if row["batch_size"] == batch]
        for runtime, precision in dict.fromkeys((row["runtime"], row["precision"]) for row in here):
            pair = [of(here, method=method, runtime=runtime, precision=precision) for method in METHODS]
            if any(row["failed"] for row in pair):
                reason = next(row["failed"] for row in pair if row["failed"])
                lines.append(f"| {NAMES[runtime]}, {precision} | not timed: {reason} | | | |")
                continue
            ms = [statistics.median(row["ms"]) for row in pair]
            cells = [f"{value:.1f}" if batch == 1 else f"{1e3 * batch / value:.0f}" for value in ms]
            cells += [spread(gains(pair[1], rows), 2), f"{quotient(pair[1], rows):.2f}"]
            lines.append(f"| {NAMES[runtime]}, {precision} | " + " | ".join(cells) + " |")
        lines.append("")
    return [*lines, f"Median of {record['repeats']} rounds, {record['threads']} threads. {versions(record)}"]


def versions(record: dict[str, Any]) -> str:
    """The machine and the versions, in a line."""
    found = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "timm", *FILES))
    return f"{record['machine']}; {found}."


def main() -> None:
    page, lines = HERE / "README.md", accuracy(json.loads((HERE / "accuracy.json").read_text()))
    if (HERE / "speed.json").exists():
        lines += ["", *speed(json.loads((HERE / "speed.json").read_text()))]
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
