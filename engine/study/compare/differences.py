"""Which differences between the rows of a comparison are more than noise: paired over seeds, and over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from engine.measure.paired import LEVEL, Difference, holm, mcnemar, paired_bootstrap, paired_seeds, sign_flips
from engine.study.points import Outcome, Point
from engine.tables import Column
from models.settings import UserError

FEW = 4  # largest number of rows whose differences are shown without being asked for
ON_A_PAGE = 12  # largest number of rows whose differences a page has without being asked for


@dataclass(frozen=True)
class Pair:
    """Two rows, and what is known of their difference, the first minus the second; fractions.

    Attributes:
        a: name of the first row.
        b: name of the second row.
        difference: over the seeds and folds that both have; without a common one, of the scores in the table.
        seeds: over the seeds and folds that both have; None without a common one.
        images: over the images that both predicted; None without any. Its p-value is exact.
        times: how often each image was predicted, by a seed each; 0 without images.
        p_seeds: the p-value over seeds, corrected for the number of pairs; None where there is none.
        p_images: the same over images.
    """

    a: str
    b: str
    difference: float
    seeds: Difference | None
    images: Difference | None
    times: int
    p_seeds: float | None = None
    p_images: float | None = None

    @property
    def more_than_noise(self) -> bool | None:
        """Whether every test that could be made says so; None if none could be made."""
        corrected = [p for p in (self.p_seeds, self.p_images) if p is not None]
        return all(p < 1 - LEVEL for p in corrected) if corrected else None

    def to_json(self) -> dict[str, Any]:
        """Returns the pair as tools/compare.py --json writes it."""
        return {
            "a": self.a,
            "b": self.b,
            "difference_percent": 100 * self.difference,
            "over_seeds": _to_json(self.seeds, self.p_seeds),
            "over_images": _to_json(self.images, self.p_images, times=self.times),
            "more_than_noise": self.more_than_noise,
        }


def _to_json(found: Difference | None, corrected: float | None, **further: int) -> dict[str, Any] | None:
    if found is None:
        return None
    bounds = {"mean_percent": found.mean, "low_percent": found.low, "high_percent": found.high}
    percent = {key: None if value is None else 100 * value for key, value in bounds.items()}
    return {"n": found.n, **further, **percent, "p": found.p, "p_holm": corrected}


def differences(points: Sequence[Point], note: Callable[[str], None] = lambda text: None) -> list[Pair]:
    """Returns every pair of points with a score of the same metric.

    P-values are corrected for the number of pairs (Holm), over seeds and over images each by themselves.

    Args:
        points: the points.
        note: called with a line about predictions that cannot be read, which are then not used.
    """
    scored = [_Scored(point, note) for point in points if point.score is not None]
    pairs = [_pair(a, b) for a, b in combinations(scored, 2) if a.point.metric == b.point.metric]
    of_seeds = _corrected([pair.seeds for pair in pairs])
    of_images = _corrected([pair.images for pair in pairs])
    return [
        replace(pair, p_seeds=p_seeds, p_images=p_images)
        for pair, p_seeds, p_images in zip(pairs, of_seeds, of_images, strict=True)
    ]


def _corrected(found: Sequence[Difference | None]) -> list[float | None]:
    tested = [i for i, one in enumerate(found) if one is not None and one.p is not None]
    corrected = dict(zip(tested, holm([found[i].p for i in tested])))
    return [corrected.get(i) for i in range(len(found))]


class _Scored:
    """A point whose outcomes are read once, when they are needed."""

    def __init__(self, point: Point, note: Callable[[str], None]) -> None:
        self.point, self._note = point, note

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        found = {}
        for name, read in self.point.outcomes.items():
            try:
                found[name] = read()
            except UserError as error:
                self._note(f"not used for differences over images: {error}")
        return found


def _pair(a: _Scored, b: _Scored) -> Pair:
    common = [name for name in a.point.scores if name in b.point.scores]
    seeds = None
    if common:
        seeds = paired_seeds([a.point.scores[name] for name in common], [b.point.scores[name] for name in common])
    images, times = _over_images(a.outcomes, b.outcomes)
    # The scores in the table are means over all seeds of each row, which may not be the same seeds.
    difference = a.point.score - b.point.score if seeds is None else seeds.mean
    return Pair(a.point.name, b.point.name, difference, seeds, images, times)


def _over_images(a: dict[str, Outcome], b: dict[str, Outcome]) -> tuple[Difference | None, int]:
    """Compares outcomes over the images that both have, and returns how often each image occurs.

    Outcomes of the same seed and fold are paired; a single one of either side is paired with whatever the other has.
    """
    common = [name for name in a if name in b]
    paired = [(a[name], b[name]) for name in common]
    if not common and len(a) == len(b) == 1:
        paired = list(zip(a.values(), b.values()))
    rows = [rights for one, other in paired if (rights := _aligned(one, other)) is not None]
    if not rows:
        return None, 0
    names = [name for images, _, _ in rows for name in images]
    right_a, right_b = (np.concatenate([row[i] for row in rows]) for i in (1, 2))
    unique, of_image, counts = np.unique(np.array(names, object).astype(str), return_inverse=True, return_counts=True)
    times = int(counts.max())
    if times == 1:
        p = mcnemar(right_a, right_b).p
        return replace(paired_bootstrap(right_a, right_b), p=p), 1
    if counts.min() < times:  # seeds were tested on different images: only those that all have
        keep = counts[of_image] == times
        unique, of_image = np.unique(of_image[keep], return_inverse=True)
        right_a, right_b = right_a[keep], right_b[keep]
    total_a, total_b = (np.bincount(of_image, right, len(unique)).astype(np.int64) for right in (right_a, right_b))
    return replace(paired_bootstrap(total_a / times, total_b / times), p=sign_flips(total_a, total_b)), times


def _aligned(a: Outcome, b: Outcome) -> tuple[Sequence[str], np.ndarray, np.ndarray] | None:
    """Returns names of images and which are right in both outcomes; None if they are not of the same images."""
    if a.images == b.images:
        return a.images, a.correct, b.correct
    at = {name: i for i, name in enumerate(b.images)}
    if len(at) != len(a.images) or set(at) != set(a.images):
        return None
    return a.images, a.correct, b.correct[[at[name] for name in a.images]]


def table(pairs: Sequence[Pair]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of the table of differences, in percentage points."""
    titles = ["difference, points", "over seeds", "p (Holm)", "over images", "p (Holm)"]
    columns = [Column("row", True), Column("minus", True), *map(Column, titles), Column("more than noise", True)]
    cells = [
        [
            pair.a,
            pair.b,
            f"{100 * pair.difference:+.2f}",
            _interval(pair.seeds),
            _p(pair.p_seeds),
            _interval(pair.images),
            _p(pair.p_images),
            {True: "yes", False: "no", None: "-"}[pair.more_than_noise],
        ]
        for pair in pairs
    ]
    return columns, cells


def explanation(pairs: Sequence[Pair]) -> list[str]:
    """Returns lines that say how the differences were tested."""
    lines = [
        "Intervals are of 95 %, one pair at a time; p-values are corrected for all pairs shown (Holm). "
        "More than noise: every p-value of the pair is below 0.05."
    ]
    if any(pair.seeds is not None and pair.seeds.n > 1 for pair in pairs):
        numbers = _numbers(pair.seeds.n for pair in pairs if pair.seeds is not None and pair.seeds.n > 1)
        says = "whether other trainings would differ"
        over = f"{numbers} seeds and folds that both rows have"
        lines.append(f"Over seeds: the difference and its paired t interval over {over}, which say {says}.")
    if any(pair.images is not None for pair in pairs):
        several = any(pair.times > 1 for pair in pairs)
        test = "McNemar's exact test" + (", or randomised signs where there are several seeds" if several else "")
        says = "which say whether these trained models would differ on other images"
        lines.append(f"Over images: paired bootstrap interval and {test}, {says}.")
    if any(pair.seeds is not None and pair.p_seeds is None for pair in pairs):
        lines.append("Rows of one seed, or with equal differences, say nothing about other trainings.")
    return lines


def _numbers(values: Iterable[int]) -> str:
    numbers = sorted(set(values))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _interval(found: Difference | None) -> str:
    if found is None or found.low is None or found.high is None:
        return "-"
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
