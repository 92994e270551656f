"""What a benchmark writes as JSON: the machine, the command, and the time of every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from engine.cost.speed.model.benchmark import Row
from engine.cost.speed.model.variants import RUNTIMES
from engine.machine import commit, device_name, versions
from models.merging import MERGERS


def record(
    model: str, overrides: Sequence[str], rows: Sequence[Row], device: torch.device, *, repeats: int, warmup: int
) -> dict[str, Any]:
    """Returns what was measured, as JSON has it; `table` computes everything that is printed from its `rows`.

    Args:
        model: the model's name, as the user gave it.
        overrides: its settings, as the user gave them.
        rows: what was measured.
        device: where.
        repeats: timed rounds.
        warmup: rounds before them.
    """
    return {
        "model": model,
        "overrides": list(overrides),
        "machine": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions() | {name: version(name) for name in _packages(rows)},
        "commit": commit(),
        "warmup": warmup,
        "repeats": repeats,
        "rows": [row.record() for row in rows],
    }


def _packages(rows: Sequence[Row]) -> list[str]:
    """Returns the packages that made and ran the files of rows that were timed."""
    from models.export import FORMATS

    timed = [row.variant for row in rows if row.failed is None]
    formats = [RUNTIMES[variant.runtime].format for variant in timed]
    names = [name for to in formats if to for name in FORMATS[to].packages]
    return sorted({*names, *(["nncf"] if any(variant.precision == "int8" for variant in timed) else [])})


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader of the rows needs to know: methods whose training steps do not become shorter."""
    methods = dict.fromkeys(row["method"] for row in rows if row["step"] == "train")
    return [
        f"note: merging does not shorten a training step of {method}: it learns with all tokens"
        for method in methods
        if method in MERGERS and MERGERS[method].soft is not None
    ]
