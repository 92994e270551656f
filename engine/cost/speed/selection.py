"""Times token selection by facility location: our implementation, a plain loop, and submodlib."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.cost.speed.merging import HEAD_DIM
from models.merging import MergeContext
from models.merging.methods.facility_location import facility_location
from models.timing import Times, timed

FORMS = ("greedy", "elimination", "stochastic")


def selection_times(batch: int, patches: int, kept: int, repeats: int) -> Times:
    """Times the selection of `kept` out of `patches` on a CPU, including the similarities.

    Our implementation processes the whole batch at once. A plain loop in NumPy and, if installed, submodlib's lazy
    greedy algorithm process a single image.

    Args:
        batch: images of a batch.
        patches: patches of an image.
        kept: patches to keep.
        repeats: timed calls of each.

    Returns:
        Milliseconds per image of each call.
    """
    metric = torch.randn(batch, patches, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    context = MergeContext(torch.ones(batch, patches))
    batched: dict[str, Callable[[], object]] = {
        f"ours, {form}": lambda form=form: facility_location(metric, patches - kept, context, form) for form in FORMS
    }
    times = {name: [ms / batch for ms in values] for name, values in timed(batched, repeats, metric.device).items()}
    single: dict[str, Callable[[], object]] = {"plain loop": lambda: plain_loop(similarity(metric[0]), kept)}
    try:
        from submodlib import FacilityLocationFunction

        single["submodlib, lazy greedy"] = lambda: FacilityLocationFunction(
            n=patches, mode="dense", sijs=similarity(metric[0]), separate_rep=False
        ).maximize(budget=kept, optimizer="LazyGreedy", show_progress=False)
    except ImportError:
        pass
    return {**times, **timed(single, repeats, metric.device)}


def similarity(metric: Tensor) -> np.ndarray:
    """Returns the cosine similarities (N, N) of vectors (N, D), scaled to [0, 1]."""
    unit = F.normalize(metric, dim=-1)
    return ((unit @ unit.T + 1) / 2).numpy()


def plain_loop(similarities: np.ndarray, kept: int) -> list[int]:
    """Selects by forward greedy selection, recomputing every gain in each step.

    Args:
        similarities: (N, N).
        kept: number of items to select.

    Returns:
        The indices of the selected items, in the order of selection.
    """
    best, chosen = np.zeros_like(similarities[0]), []
    for _ in range(kept):
        rest = [i for i in range(len(similarities)) if i not in chosen]
        gains = {i: (similarities[i] - best).clip(min=0).sum() for i in rest}
        chosen.append(max(gains, key=gains.__getitem__))
        best = similarities[chosen[-1]].clip(min=best)
    return chosen
