"""A trained Swin made cheaper without training: merged inside its windows in several ways, or on smaller images.

PYTHONPATH=. python docs/results/swin/off_the_shelf.py WORK

WORK is the folder that train.py filled. Differences are in points, with 95 % intervals by bootstrap over images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.models import SwinTransformer
from torch import nn
from train import SIZE, arrays, built, result
from windows import in_each_block, staged


def smaller(model: SwinTransformer, size: int) -> nn.Module:
    """On images of this size, with smaller windows."""
    small = deepcopy(model)
    small.set_input_size((size, size), window_size=size // 16)
    return small


def ways(model: SwinTransformer) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """What is compared: how to build it, and its image size."""
    rows: dict[str, tuple[Callable[[], nn.Module], int]] = {"unmerged": (lambda: model, SIZE)}
    for method in ("tome", "facility_location"):
        rows[f"`{method}`, once"] = (partial(staged, model, (1,), method=method), SIZE)
    rows["`tome`, from the second block"] = (partial(staged, model, (1,), 1), SIZE)
    rows["`tome`, both stages"] = (partial(staged, model, (1, 2)), SIZE)
    rows["`tome`, in each block anew"] = (partial(in_each_block, model, (1,)), SIZE)
    rows["80 px, windows of 5"] = (partial(smaller, model, 80), 80)
    return rows


def interval(first: list[bool], second: list[bool]) -> str:
    """The difference in accuracy, in points."""
    each = 100 * (np.array(first, float) - np.array(second, float))
    rows = np.random.default_rng(0).integers(0, len(each), (2000, len(each)))
    low, high = np.percentile(each[rows].mean(1), [2.5, 97.5])
    return f"{each.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = built()
    model.load_state_dict(torch.load(given.work / "unmerged.pt", weights_only=True))
    images, labels = arrays(Path(), given.work, "val")
    print("| | M multiply-adds | accuracy | difference |\n|---|---|---|---|")
    results = {}
    for name, (build, size) in ways(model).items():
        row = results[name] = result(build(), size, images, labels)
        difference = interval(row["right"], results["unmerged"]["right"])
        print(f"| {name} | {row['macs'] / 1e6:.1f} | {row['accuracy']:.1f} % | {difference} |", flush=True)


if __name__ == "__main__":
    main()
