#!/usr/bin/env python3
"""Writes stage.txt and draws stage.png from the folders beside it: python docs/results/dense/stage.py

Counted pixels of a row's seeds are added up image by image. Intervals are paired bootstraps over test images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from engine.measure.segmentation import mean_iou, paired_images  # noqa: E402

ENLARGED = "a CNN stage on maps enlarged to 14 x 14"
EIGHT = "a CNN stage on the first eight blocks"
HEADS = {  # heading -> folders, one for each seed
    "a CNN stage": ["stage/seed0", "stage/seed1", "stage/seed2"],
    ENLARGED: ["enlarged/seed0", "enlarged/seed1", "enlarged/seed2"],
    EIGHT: [f"eight_blocks/seed{seed}" for seed in range(3)],
    "two linear layers of the stage's cost": ["two_layers/seed0", "two_layers/seed1"],
    "a linear probe": ["four_blocks"],
    "a CNN stage on SqueezeNet": ["squeezenet/seed0"],
}
TOME = [f"tome from block {row} GMACs" for row in ("5, 1", "4, 0.9", "3, 0.8", "2, 0.7", "2, 0.6")]
SMALLER = ["176 px", "192 px", "208 px", "unmerged"]
FACILITY = [f"facility_location from block {row} GMACs" for row in ("4, 0.9", "2, 0.7")]
LARGER = ["288 px", "336 px", "392 px"]
RANDOM = ["random from block 4, 0.9 GMACs", "random from block 2, 0.7 GMACs"]
BESIDE = dict(zip(TOME, ("208 px", "192 px", "192 px", "176 px", "176 px"), strict=True))  # costs about as much
LINES = [  # head, rows, format, colour, label
    ("a CNN stage", TOME, "-o", "#0072B2", "tome, merged tokens feed a CNN stage"),
    ("a CNN stage", SMALLER, "--o", "black", "smaller images, no merging, the same stage"),
    ("a CNN stage", RANDOM, "-o", "#7F7F7F", "random, the same stage"),
    ("two linear layers of the stage's cost", TOME, "-s", "#56B4E9", "tome, two linear layers of the stage's cost"),
    ("two linear layers of the stage's cost", SMALLER, "--s", "0.75", "smaller images, the same two layers"),
    ("a linear probe", TOME, ":^", "#0072B2", "tome, a linear probe"),
    ("a linear probe", SMALLER, ":^", "0.6", "smaller images, a linear probe"),
]


def load(folders: list[str]) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    """The GMACs of each row, and its counted pixels (N, 3, classes) with each seed."""
    costs: dict[str, float] = {}
    counts: dict[str, list[np.ndarray]] = {}
    for folder in folders:
        record = json.loads((HERE / folder / "segment.json").read_text())
        costs |= {row["name"]: row["gmacs"] for row in record["rows"]}
        with np.load(HERE / folder / "counts.npz") as arrays:
            for name, own in zip(map(str, arrays["rows"]), arrays["counts"].astype(np.int64), strict=True):
                counts.setdefault(name, []).append(own)
    return costs, counts


def percent(counts: list[np.ndarray]) -> str:
    values = [100 * mean_iou(own.sum(0)) for own in counts]
    return f"{np.mean(values):.2f} | {', '.join(f'{value:.2f}' for value in values)}"


def difference(own: list[np.ndarray], other: list[np.ndarray]) -> str:
    found = paired_images(mean_iou, sum(own), sum(other))
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def main() -> None:
    lines: list[str] = []
    found = {head: load(folders) for head, folders in HEADS.items()}
    for head, (costs, counts) in found.items():
        lines.append(f"\n{head}\n")
        lines.append("| row | GMACs | mIoU, % | with each seed | minus no merging | minus the smaller image | |")
        lines.append("|---|---|---|---|---|---|---|")
        for name in (name for name in (*SMALLER, *TOME, *FACILITY, *RANDOM, *LARGER) if name in counts):
            own = counts[name]
            cells = ["", "", ""]
            if name != "unmerged":
                cells[0] = difference(own, counts["unmerged"])
            if name in BESIDE:
                cells[1:] = difference(own, counts[BESIDE[name]]), BESIDE[name]
            lines.append(f"| {name} | {costs[name]:.3f} | {percent(own)} | {' | '.join(cells)} |")
    seeds = len(HEADS["two linear layers of the stage's cost"])
    lines.append(f"\na CNN stage minus two linear layers, {seeds} seeds\n")
    for name in SMALLER + TOME:
        own, other = (found[head][1][name][:seeds] for head in ("a CNN stage", "two linear layers of the stage's cost"))
        lines.append(f"{name}: {difference(own, other)}")
    (_, counts), (_, enlarged) = found["a CNN stage"], found[ENLARGED]
    lines.append("\nsmaller images, maps enlarged to 14 x 14 minus maps as they are\n")
    lines += [f"{name}: {difference(enlarged[name], counts[name])}" for name in SMALLER if name != "unmerged"]
    lines.append("\nmerged minus smaller images whose maps are enlarged to 14 x 14\n")
    lines += [f"{name}: {difference(counts[name], enlarged[BESIDE[name]])}, {BESIDE[name]}" for name in TOME]
    lines.append("\nminus the first eight blocks of the unmerged model, at 224 px\n")
    shallow = found[EIGHT][1]["unmerged"]
    lines += [f"{name}: {difference(counts[name], shallow)}" for name in (*TOME, "192 px")]
    (HERE / "stage.txt").write_text("\n".join(lines) + "\n")
    draw(found, LINES, HERE / "stage.png", 5, "lower right")


def draw(found: dict, drawn: list[tuple], file: Path, height: float, place: str) -> None:
    """Draws mIoU by GMACs for lines as LINES has them; a bar is the range of a row's seeds."""
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    for head, rows, style, colour, label in drawn:
        costs, counts = found[head]
        rows = sorted((row for row in rows if row in counts), key=costs.__getitem__)
        shares = [[100 * mean_iou(own.sum(0)) for own in counts[row]] for row in rows]
        xs = [costs[row] for row in rows]
        axes.plot(xs, [np.mean(of_row) for of_row in shares], style, color=colour, label=label, ms=5, lw=1.7)
        axes.vlines(
            xs, [min(of_row) for of_row in shares], [max(of_row) for of_row in shares], color=colour, lw=3, alpha=0.4
        )
    axes.set(xlabel="GMACs from the image to the classes of patches", ylabel="mIoU, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc=place)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
