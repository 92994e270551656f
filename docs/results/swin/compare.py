"""What merging inside windows saves in Swin and SwinV2: multiply-adds and time, beside smaller images.

PYTHONPATH=. python docs/results/swin/compare.py timm:swin_tiny_patch4_window7_224 --batch 1 32

Weights are random: they do not change times. Times are of one thread's own work (CPU time), the median of rounds in
which all ways take turns, because other work ran beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from windows import in_each_block, staged, stages_of

from models.merging.wrapping.cost import count


def built(name: str) -> tuple[nn.Module, int]:
    """A model with random weights, and its image size."""
    library, _, name = name.partition(":")
    if library == "torchvision":
        return torchvision.models.get_model(name).eval(), 256 if "v2" in name else 224
    model: Any = timm.create_model(name)
    return model.eval(), model.pretrained_cfg["input_size"][-1]


def ways(model: Any, size: int) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """What is compared: how to build it, and its image size."""
    every = (1, 2, 3, 4)
    stage, name = stages_of(model)[2]
    middle = len(list(getattr(stage, name).children())) // 2
    rows: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "as it is": (lambda: model, size),
        "by cells, nothing merged": (lambda: staged(model, every, None), size),
        "stage 3, once": (lambda: staged(model, (3,)), size),
        "stage 3, once, bias of the first member": (lambda: staged(model, (3,), bias="first"), size),
        "stage 3, once, `grid`": (lambda: staged(model, (3,), method="grid"), size),
        "stage 3, once, from its middle": (lambda: staged(model, (3,), middle), size),
        "stage 3, in each block anew": (lambda: in_each_block(model, (3,)), size),
        "stages 3 and 4, once": (lambda: staged(model, (3, 4)), size),
        "all stages, once": (lambda: staged(model, every), size),
        "all stages, in each block anew": (lambda: in_each_block(model, every), size),
    }
    if hasattr(model, "set_input_size"):
        window = size // 32  # the last stage is one window
        for side in (window - 1, window - 2):

            def smaller(side: int = side) -> nn.Module:
                small = deepcopy(model)
                small.set_input_size((side * 32, side * 32), window_size=side)
                return small

            rows[f"{side * 32} px, windows of {side}"] = (smaller, side * 32)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, nargs="+", default=[15], help="one number for each batch")
    parser.add_argument("--ways", nargs="+", help="starts of the names of ways; all")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, size = built(given.model)
    rows = {
        name: (build(), side)
        for name, (build, side) in ways(model, size).items()
        if not given.ways or any(name.startswith(start) for start in ("as it is", *given.ways))
    }
    macs = {name: count(each, (3, side, side)) for name, (each, side) in rows.items()}
    quotients: dict[str, list[str]] = {name: [] for name in rows}
    for batch, rounds in zip(given.batch, given.rounds, strict=True):
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        with torch.inference_mode():
            for turn in range(rounds + 1):
                for name, (each, side) in rows.items():
                    x = torch.randn(batch, 3, side, side)
                    began = time.process_time()
                    each(x)
                    if turn:
                        seconds[name].append(time.process_time() - began)
        middle = {name: median(each) for name, each in seconds.items()}
        for name in rows:
            quotients[name].append(f"{middle[name] * 1e3 / batch:.1f} | {middle['as it is'] / middle[name]:.2f}")
    print(f"{given.model}\n\n| | GMACs | fewer |" + "".join(f" ms, batch {b} | faster |" for b in given.batch))
    print("|---|---|---|" + "---|---|" * len(given.batch))
    for name in rows:
        cells = [f"{macs[name] / 1e9:.2f}", f"{macs['as it is'] / macs[name]:.2f}", *quotients[name]]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
