"""Merging by submodular selection: the patches that represent all others best are kept.

The facility-location function (Nemhauser, Wolsey, Fisher: An analysis of approximations for maximizing submodular set
functions, 1978; Lin and Bilmes: A class of submodular functions for document summarization, 2011) of a set S of patches
is

    F(S) = sum_i size_i max_{j in S} sim(i, j),    sim(i, j) = (1 + cos(m_i, m_j)) / 2,    F of nothing = 0.

With `importance: attention` a patch counts size_i a_i, where a_i is its share of the class token's attention divided by
the mean over the patches: patches that the class token reads are represented better, at the price of others. With
`importance: keys`, which needs neither attention nor a class token, a_i is how far the patch's keys are from the mean
key (`distinctness` in layer.py).

F is monotone and submodular, so repeatedly adding the patch with the greatest gain reaches at least 1 - 1/e of the
value of the best S of the same size. Every patch that is not selected merges into the selected patch that is most
similar to it. A patch that stands for several patches counts as often as its size.

`form` chooses one of four forms of the selection:
- "greedy": forward, N - r steps. Only this form has the bound above.
- "elimination": starts from all patches and drops, r times, the patch whose loss is smallest, computed from each
  patch's best and second-best similarity in S. For small r; no bound is known, docs/merging.md has measured values.
- "stochastic": forward, each step from a sample of (N / (N - r)) ln(1 / 0.05) patches (Mirzasoleiman et al.: Lazier
  than lazy greedy, 2015): 1 - 1/e - 0.05 in expectation over draws, N^2 ln 20 evaluations in total. All images share
  one draw, so that no image depends on another. For long sequences.
- "auto": stochastic above 1,024 patches, otherwise elimination where r < N - r, otherwise greedy.

The sequential part is the operator `hybridmerge::select` (selection.py), which torch.compile and torch.export keep as
one node.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contract import Assignment, Attention, Counts, MergeContext, Merger, Option, all_pairs_macs, importance_macs
from ..tokens import take
from .selection import select_directly
from .topk import LEAST_ATTENTION

Form = Literal["auto", "greedy", "elimination", "stochastic"]
Importance = Literal["size", "attention", "keys"]
LONG = 1024  # patches


def facility_location(
    metric: Tensor,
    r: int,
    context: MergeContext,
    form: Annotated[Form, Option("how patches are selected")] = "auto",
    importance: Annotated[
        Importance, Option("what patches count by: size, or size and the class token's attention, or size and keys")
    ] = "size",
) -> Assignment:
    """Selects N - r patches by facility location and merges each of the others into the one most similar to it.

    Where patches tie, forward forms select the lower position, and elimination drops it. The selected patches keep
    their order.

    Args:
        metric: (B, N, D) float32.
        r: patches to remove, 0 <= r < N.
        context: provides the sizes and, unless they alone count, the class token's attention or what stands for it.
        form: see above.
        importance: see above.

    Returns:
        An assignment to N - r output patches.
    """
    patches = metric.shape[1]
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 1/2 to everything
    similarity = (unit @ unit.transpose(1, 2)).add_(1).div_(2)  # in place: allocating takes longer than adding
    weight = context.size
    if importance != "size":
        assert context.attention is not None
        # Divided by its mean, so that ties are decided as they are by sizes alone; none at all is equal attention.
        attended = context.attention.clamp(min=LEAST_ATTENTION)
        weight = weight * attended / attended.mean(dim=1, keepdim=True)
    kept = select_directly(similarity, weight, patches - r, chosen_form(form, patches, r))  # (B, N - r), ascending

    stays = torch.zeros_like(context.size).scatter(1, kept, 1.0)
    gone = stays.argsort(dim=1, stable=True)[:, :r]  # patches that are not selected, in order
    rows = take(similarity, gone)  # (B, r, N)
    place = stays.cumsum(dim=1).long() - 1
    partner = place.gather(1, (rows + stays.unsqueeze(1)).argmax(dim=-1))  # + 1: no unselected patch is more similar
    return Assignment(place.scatter(1, gone, partner), patches - r)


def chosen_form(form: str, patches: int, r: int) -> str:
    """The form of the selection that "auto" stands for; any other form unchanged."""
    if form != "auto":
        return form
    if patches > LONG:
        return "stochastic"
    return "elimination" if r < patches - r else "greedy"


def macs(counts: Counts, form: str, importance: str) -> int:
    """MACs of comparing all patches with all, and of what they count by besides size."""
    return all_pairs_macs(counts) + importance_macs(counts, importance)


def attention(form: str, importance: str) -> Attention:
    """What the method uses with these options."""
    used: dict[str, Attention] = {"size": None, "attention": "class", "keys": "keys"}
    return used[importance]


FACILITY_LOCATION = Merger(facility_location, macs=macs, attention=attention)
