"""The measures of how faithful an explanation is, by name: MEASURES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.explain.faithful import infidelity, road
from engine.explain.faithful.areas import CELLS, deletion_and_insertion


class Batch(NamedTuple):
    """Explained images.

    Attributes:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        relevance: (B, rows, columns).
        target: (B,): the classes that are explained.
        first: the number of the first image among all.
        steps: of curves.
    """

    model: nn.Module
    images: Tensor
    relevance: Tensor
    target: Tensor
    first: int
    steps: int


class Score(NamedTuple):
    """A number of an explanation.

    Attributes:
        name: in faithfulness.json.
        title: of the column.
        large: whether a good explanation has a large one; otherwise it has a small one.
    """

    name: str
    title: str
    large: bool


@dataclass(frozen=True)
class Measure:
    """An entry of MEASURES.

    Attributes:
        folder: where its files are, and what the array in them is called.
        scores: what it finds.
        compute: a batch of images -> (B, scores).
        decided_by: what else decides the numbers, given the steps of curves.
    """

    folder: str
    scores: Sequence[Score]
    compute: Callable[[Batch], Tensor]
    decided_by: Callable[[int], Sequence[Any]]


def _areas(batch: Batch) -> Tensor:
    *explained, _, steps = batch
    return deletion_and_insertion(*explained, steps=steps).areas


def _road(batch: Batch) -> Tensor:
    *explained, first, _ = batch
    return road.road(*explained, first=first)


def _infidelity(batch: Batch) -> Tensor:
    *explained, _, _ = batch
    return infidelity.infidelity(*explained).unsqueeze(1)


MEASURES: dict[str, Measure] = {
    "areas": Measure(
        folder="areas",
        scores=(Score("deletion", "deletion", large=False), Score("insertion", "insertion", large=True)),
        compute=_areas,
        decided_by=lambda steps: (steps,),
    ),
    "road": Measure(
        folder="road",
        scores=(Score("road_morf", "ROAD MoRF", large=False), Score("road_lerf", "ROAD LeRF", large=True)),
        compute=_road,
        decided_by=lambda steps: ("road", road.FRACTIONS, road.NOISE, CELLS),
    ),
    "infidelity": Measure(
        folder="infidelity",
        scores=(Score("infidelity", "infidelity", large=False),),
        compute=_infidelity,
        decided_by=lambda steps: ("infidelity", infidelity.SAMPLES, CELLS),
    ),
}
