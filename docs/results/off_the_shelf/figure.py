#!/usr/bin/env python3
"""Draws off_the_shelf.png from the two folders beside it: python docs/results/off_the_shelf/figure.py"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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
SHOWN = ("facility_location by attention late", "dpc_knn late", "tome late", "tome")  # in the right half
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


def draw_losses(axes, record: dict) -> None:
    """Points of top-1 accuracy lost against GMACs, with 95 % intervals over the same images, beside smaller images."""
    rows = {row["name"]: row for row in record["rows"]}
    drawn = {name: [rows[f"{name}, {budget}"] for budget in BUDGETS] for name in SHOWN}
    drawn["no merging, smaller images"] = [row for name, row in rows.items() if name.endswith(" px")]
    for place, (name, own) in enumerate(drawn.items()):
        late = name.endswith(" late")
        colour = LINES.get(name.removesuffix(" late"), "black")
        style = {"color": colour, "ls": "-" if late else ":" if name in SHOWN else "--", "lw": 2 if late else 1.4}
        xs = [row["gmacs"] + 0.004 * (place - 2) for row in own]  # beside each other, so that intervals can be read
        low, high = np.array([row["difference_interval"] for row in own]).T * 100
        axes.vlines(xs, low, high, color=colour, lw=1, alpha=0.8)
        label = (
            "smaller images: 208, 192, 176 px"
            if name not in SHOWN
            else name.replace("facility_location", "facility location")
        )
        axes.plot(
            xs,
            [100 * row["difference"] for row in own],
            marker="o",
            ms=5,
            mfc=colour if late else "white",
            label=label,
            **style,
        )
    axes.axhline(0, color="0.3", lw=1)
    axes.set(xlabel="GMACs, matching included", ylabel="change of top-1 accuracy, points, with 95 % interval")
    axes.set_title(f"{record['images']:,} images of Imagenette, most of them seen in training", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
