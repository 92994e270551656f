#!/usr/bin/env python3
"""Writes tuned.txt and draws tuned.png from the folders beside it: python docs/results/dense/tuned.py

The model is trained together with the CNN stage. What is computed of the seeds is as in stage.py.
"""

from __future__ import annotations

import numpy as np
from stage import HERE, draw, load, percent
from stage import difference as of_equal_seeds

EIGHT = "the first eight blocks, trained together with the CNN stage"
LAYERS = "trained together, two linear layers of the stage's cost"
HEADS = {  # heading -> folders, one for each seed
    "trained together": [f"tuned/seed{seed}" for seed in range(3)],
    LAYERS: ["tuned_two_layers/seed0"],
    "SqueezeNet trained together with the CNN stage": ["tuned_squeezenet/seed0"],
    EIGHT: [f"tuned_eight_blocks/seed{seed}" for seed in range(2)],
    "a frozen model": [f"stage/seed{seed}" for seed in range(3)],
}
TOME = ["tome from block 3, 0.8 GMACs", "tome from block 2, 0.7 GMACs"]
RANDOM = ["random from block 3, 0.8 GMACs"]
SMALLER = ["unmerged", "192 px", "176 px", "336 px"]
BESIDE = {TOME[0]: "192 px", TOME[1]: "176 px", RANDOM[0]: "192 px"}  # costs about as much
LINES = [  # head, rows, format, colour, label
    ("trained together", ["unmerged", *TOME], "-o", "#0072B2", "tome, trained together with the CNN stage"),
    ("trained together", SMALLER, "--o", "black", "smaller images, no merging, trained likewise"),
    (EIGHT, ["unmerged"], "s", "#D55E00", "the first eight blocks, no merging, trained likewise"),
    ("trained together", RANDOM, "X", "#7F7F7F", "random, trained likewise"),
    ("a frozen model", ["unmerged", *TOME], "-^", "#56B4E9", "tome, frozen, a CNN stage"),
    ("a frozen model", SMALLER, "--^", "0.6", "smaller images, frozen, a CNN stage"),
]


def difference(own: list[np.ndarray], other: list[np.ndarray]) -> str:
    """Of the seeds that both have."""
    seeds = min(len(own), len(other))
    return of_equal_seeds(own[:seeds], other[:seeds])


def main() -> None:
    lines: list[str] = []
    found = {}
    for head, folders in HEADS.items():
        costs, counts = found[head] = load(folders)
        lines.append(f"\n{head}\n")
        lines.append("| row | GMACs | mIoU, % | with each seed | minus no merging | minus the smaller image | |")
        lines.append("|---|---|---|---|---|---|---|")
        for name in (name for name in (*SMALLER, *TOME, *RANDOM) if name in counts):
            own, cells = counts[name], ["", "", ""]
            if name != "unmerged":
                cells[0] = difference(own, counts["unmerged"])
            if name in BESIDE and BESIDE[name] in counts:
                cells[1:] = difference(own, counts[BESIDE[name]]), BESIDE[name]
            lines.append(f"| {name} | {costs[name]:.3f} | {percent(own)} | {' | '.join(cells)} |")
    lines.append("\ntrained together: minus the first eight blocks of the unmerged model\n")
    (_, counts), (_, shallow) = found["trained together"], found[EIGHT]
    lines += [f"{name}: {difference(counts[name], shallow['unmerged'])}" for name in (*TOME, "192 px")]
    lines.append("\ntrained together: a CNN stage minus two linear layers, of the seed that both have\n")
    layers = found[LAYERS][1]
    lines += [f"{name}: {difference(counts[name], layers[name])}" for name in ("unmerged", "192 px", TOME[0])]
    (HERE / "tuned.txt").write_text("\n".join(lines) + "\n")
    draw(found, LINES, HERE / "tuned.png", 4.5, "center right")


if __name__ == "__main__":
    main()
