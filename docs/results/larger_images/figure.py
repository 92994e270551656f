#!/usr/bin/env python3
"""Draws larger_images.png from the folders beside it: python docs/results/larger_images/figure.py"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
COLOURS = {"no merging": "black", "facility location by attention": "#D55E00", "tome": "#0072B2"}
TITLES = {
    "imagenet500": "500 unseen images, whole",
    "cropped": "500 unseen images, the middle 87.5 %",
    "imagenette": "3,925 images, most of them seen in training",
}


def main() -> None:
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for ax, (name, title) in zip(axes, TITLES.items(), strict=True):
        draw(ax, json.loads((HERE / name / "zeroshot.json").read_text())["rows"], title)
    axes[0].set_ylabel("top-1 accuracy minus that of 224 px unmerged,\npoints, with 95 % interval")
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(HERE / "larger_images.png", dpi=130)


def draw(axes, rows: list[dict], title: str) -> None:
    """Change of accuracy against GMACs; each point is labelled with the images' size."""
    for name, colour in COLOURS.items():
        points = sorted(point for row in rows if (point := point_of(row)) and point[0] == name)
        if not points:
            continue
        merges = name != "no merging"
        _, gmacs, sizes, changes, lows, highs = zip(*points, strict=True)
        shift = {"no merging": 0, "facility location by attention": -0.006, "tome": 0.006}[name]
        xs = np.array(gmacs) + shift
        axes.vlines(xs, lows, highs, color=colour, lw=1, alpha=0.6)
        axes.plot(
            xs,
            changes,
            "o" if merges else "o--",
            color=colour,
            ms=6,
            lw=1.4,
            mfc=colour if merges else "white",
            label=name,
        )
        for x, size, change in zip(xs, sizes, changes, strict=True):
            left = name == "facility location by attention"
            axes.annotate(
                f"{size}",
                (x, change),
                (-5 if left else 5, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=colour,
                ha="right" if left else "left",
            )
    axes.axhline(0, color="0.3", lw=0.8)
    axes.axvline(rows[0]["gmacs"], color="0.3", lw=0.8, ls=":")
    axes.set(xlabel="GMACs, matching included; numbers: pixels")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def point_of(row: dict) -> tuple | None:
    """Line, GMACs, pixels, change, and its interval, in points."""
    name = row["name"]
    if name == "unmerged":
        return "no merging", row["gmacs"], 224, 0.0, 0.0, 0.0
    low, high = (100 * value for value in row["difference_interval"])
    values = 100 * row["difference"], low, high
    if name.endswith(" px"):
        return "no merging", row["gmacs"], int(name.split()[0]), *values
    line, size = re.fullmatch(r"(.*) at (\d+) px, .*", name).groups()
    return line.replace("facility_location", "facility location"), row["gmacs"], int(size), *values


if __name__ == "__main__":
    main()
