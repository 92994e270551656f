#!/usr/bin/env python3
"""Draws dense.png from the two folders beside it: python docs/results/dense/figure.py"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
PANELS = {"four_blocks": "a probe of blocks 3, 6, 9 and 12", "last_block": "a probe of the last block alone"}
LATE = (" from block 5, 1 GMACs", " from block 4, 0.9 GMACs", " from block 3, 0.8 GMACs", " from block 2, 0.7 GMACs")
LINES = {  # line -> colour, label
    "facility_location by attention": ("#D55E00", "facility location by attention"),
    "facility_location": ("#E69F00", "facility location"),
    "tome": ("#0072B2", "tome"),
    "grid": ("#56B4E9", "grid"),
    "random": ("#7F7F7F", "random"),
}
MARKS = {  # line -> marker, colour, label
    "pool in one block": ("s", "#CC79A7", "2 x 2 pooling in block 6 or 8"),
    "tome": ("v", "#0072B2", "tome in every block"),
    "tome at 256 px": ("*", "#0072B2", "tome at 256 px"),
    "facility_location at 256 px": ("*", "#E69F00", "facility location at 256 px"),
}


def main() -> None:
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        draw(axes, json.loads((HERE / name / "segment.json").read_text()))
        axes.set_title(title, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(HERE / "dense.png", dpi=130)


def draw(axes, record: dict) -> None:
    """mIoU against GMACs, with 95 % intervals of the difference from the unmerged model, which is a line."""
    rows = {row["name"]: row for row in record["rows"]}
    unmerged = rows["unmerged"]["miou"]
    sizes = sorted((row for name, row in rows.items() if name.endswith(" px")), key=lambda row: row["gmacs"])
    smaller = [row for row in sizes if row["gmacs"] < rows["unmerged"]["gmacs"]]
    plot(
        axes,
        [*smaller, rows["unmerged"]],
        unmerged,
        0,
        "--o",
        color="black",
        mfc="white",
        label="smaller images: 208, 192, 176 px",
    )
    for place, (line, (colour, label)) in enumerate(LINES.items()):
        own = [rows[line + suffix] for suffix in LATE if line + suffix in rows]
        if own:
            plot(axes, own, unmerged, place + 1, "-o", color=colour, label=label)
    for line, (marker, colour, label) in MARKS.items():
        own = [row for row in record["rows"] if row["line"] == line]
        size = 10 if marker == "*" else 6
        plot(axes, own, unmerged, 0, marker, color=colour, mfc="white", ms=size, label=label)
    axes.axhline(100 * unmerged, color="0.3", lw=1, label="no merging, 224 px")
    axes.set(xlabel="GMACs of the ViT and the probe, matching included", ylabel="mIoU, %", xlim=(0.66, 1.32))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plot(axes, rows: list[dict], unmerged: float, place: int, style: str, color: str, **more) -> None:
    """A line through rows; lines lie a little beside each other, so that intervals can be read."""
    xs = [row["gmacs"] + 0.004 * (place - 2) * (place > 0) for row in rows]
    axes.plot(xs, [100 * row["miou"] for row in rows], style, color=color, **{"ms": 5, "lw": 1.7, **more})
    known = [(x, row) for x, row in zip(xs, rows, strict=True) if row["difference_interval"]]
    if known:
        bounds = 100 * (unmerged + np.array([row["difference_interval"] for _, row in known]))
        axes.vlines([x for x, _ in known], bounds[:, 0], bounds[:, 1], color=color, lw=1, alpha=0.7)


if __name__ == "__main__":
    main()
