#!/usr/bin/env python3
"""Draws off_the_shelf.png from the two folders beside it: python docs/results/off_the_shelf/figure.py"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
LINES = {  # line -> colour
    "facility_location by attention": "#D55E00",
    "facility_location": "#E69F00",
    "tome": "#0072B2",
    "mctf": "#009E73",
    "dpc_knn": "#CC79A7",
    "grid": "#56B4E9",
    "pitome": "#7F7F7F",
}
BUDGETS = ("1 GMACs", "0.9 GMACs", "0.8 GMACs", "0.7 GMACs")
TITLES = {"facility_location by attention": "facility location by attention", "facility_location": "facility location"}


def main() -> None:
    small, large = (json.loads((HERE / name / "zeroshot.json").read_text()) for name in ("imagenet500", "imagenette"))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    draw_agreement(left, small)
    draw_losses(right, large)
    figure.savefig(HERE / "off_the_shelf.png", dpi=130)


def draw_agreement(axes, record: dict) -> None:
    """Agreement with the unmerged model against GMACs, a line for each method, from the first block and late."""
    rows = {row["name"]: row for row in record["rows"]}
    for line, colour in LINES.items():
        for suffix, style in ((" late", "-"), ("", ":")):
            own = [rows[f"{line}{suffix}, {budget}"] for budget in BUDGETS if f"{line}{suffix}, {budget}" in rows]
            if own:
                xs, ys = [row["gmacs"] for row in own], [100 * row["agreement"] for row in own]
                axes.plot(xs, ys, style, color=colour, marker="o", ms=5 if suffix else 3.5, lw=2 if suffix else 1.3)
    for line, colour in LINES.items():
        axes.plot([], [], color=colour, marker="o", ms=5, lw=2, label=TITLES.get(line, line))
    axes.plot([], [], "-", color="0.3", lw=2, label="late: from block 5, 4, 3, 2")
    axes.plot([], [], ":", color="0.3", lw=1.3, label="in every block")
    axes.set(xlabel="GMACs, matching included (unmerged: 1.254)", ylabel="same prediction as unmerged, %")
    axes.set_title(f"{record['images']} ImageNet validation images", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_losses(axes, record: dict, budget: str = "0.8 GMACs") -> None:
    """Points of top-1 accuracy lost at one budget, with 95 % intervals over the same images."""
    rows = [row for row in record["rows"] if row["method"] and row["name"].endswith(f", {budget}")]
    rows.sort(key=lambda row: row["difference"])
    for place, row in enumerate(rows):
        low, high = (100 * value for value in row["difference_interval"])
        late = row["line"].endswith(" late")
        colour = LINES.get(row["line"].removesuffix(" late"), "0.4")
        axes.plot([low, high], [place, place], color=colour, lw=2.2 if late else 1.2)
        axes.plot(100 * row["difference"], place, "o", color=colour, mfc=colour if late else "white", ms=7)
    names = [row["line"].replace("facility_location", "facility location") for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.axvline(0, color="0.3", lw=1)
    axes.set(xlabel="change of top-1 accuracy, points, with 95 % interval")
    axes.set_title(f"{record['images']:,} images of Imagenette, 0.8 of 1.254 GMACs", fontsize=10)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
