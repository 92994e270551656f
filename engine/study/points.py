"""`Point`: one row of a comparison, whatever it was read from: how accurate a model is, and what it costs.

Finished runs, budget sweeps of one run, and rows of tools/zeroshot.py all become points. The table, the figure and the
page of a comparison are made from points alone, so that their numbers agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np

# What a point may cost: key -> title with its unit. None in a point means not measured, or not counted.
COSTS: dict[str, str] = {
    "gmacs": "GMACs",
    "ms": "ms per image",
    "memory_mib": "peak memory, MiB",
    "params_m": "parameters, M",
    "saved_mib": "saved, MiB",
}


@dataclass(frozen=True)
class Outcome:
    """What a point predicted for each image of its test set; two outcomes over the same images can be paired.

    Attributes:
        images: names of the images, as many as `correct`; paired outcomes have equal names in equal order.
        correct: bool (N,).
    """

    images: tuple[str, ...]
    correct: np.ndarray


@dataclass(frozen=True)
class Point:
    """One row of a comparison: runs that differ only in seed and fold, or one budget of one model.

    Attributes:
        name: the row's name, unique within a comparison.
        model: what is compared by colour, such as "hybrid" or "timm:deit_tiny_patch16_224".
        method: the merging method; None for a model that does not merge.
        budget: how much is merged, in words, such as "r = 8" or "0.9 GMACs"; None without merging.
        metric: the name of the score, such as "top1".
        scores: the score of each repetition, a fraction, by what tells them apart: "seed 0", "seed 0, fold 2". Empty
            for runs without test images.
        costs: the costs by their key in `COSTS`; keys may be missing.
        line: points with the same text are one model with several budgets, and the figure joins them; None: alone.
        alike: equal for points of the same run folders that differ only in the budget, whatever they were read from;
            None: unknown.
        images: the number of test images of each repetition; None if unknown.
        outcomes: reads the outcome of a repetition, by the same keys as `scores`; empty where none was kept.
        extra: further columns of the table, by title, which ends with the unit: "agreement, %". A title is also a key
            in CSV and JSON, see `engine.study.compare.columns.key_of`.
        folders: the run folders behind the point; empty if there are none.
        spreads: the sample standard deviation of a number in `extra`, by its title, where it is shown.
        repetitions: the number of seeds and folds in words, such as "3" or "3 x 5 folds"; None: as many as `scores`.
    """

    name: str
    model: str
    method: str | None
    budget: str | None
    metric: str
    scores: Mapping[str, float]
    costs: Mapping[str, float | None]
    line: str | None = None
    alike: str | None = None
    images: int | None = None
    outcomes: Mapping[str, Callable[[], Outcome]] = field(default_factory=dict)
    extra: Mapping[str, str | float | None] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    spreads: Mapping[str, float | None] = field(default_factory=dict)
    repetitions: str | None = None

    @property
    def score(self) -> float | None:
        """The mean score, a fraction; None for runs without test images."""
        return mean(self.scores.values()) if self.scores else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of the scores; None for fewer than two."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None
