"""Token merging by submodular selection: the patches that stay are those that represent all others best.

The facility-location function (Nemhauser, Wolsey, Fisher: An analysis of approximations for maximizing submodular set
functions, 1978; Lin and Bilmes: A class of submodular functions for document summarization, 2011) of a set S of patches
is

    F(S) = sum_i size_i max_{j in S} sim(i, j),    sim(i, j) = (1 + cos(m_i, m_j)) / 2,    F of nothing = 0.

F is monotone and submodular, so that adding the patch of greatest gain, again and again, reaches at least 1 - 1/e of
what the best S of the same size reaches. Every patch that is not selected merges into the selected patch that is most
similar to it. Size makes a patch that stands for many count for many.

Four forms of the selection, by `form`:
- "greedy": forward, N - r steps. The bound is this form's alone.
- "elimination": from all patches, r times drop the one whose loss is least, from each patch's best and second-best
  similarity in S. For small r; no bound is known for it, and its value is measured in docs/merging.md.
- "stochastic": forward, each step from a sample of (N / (N - r)) ln(1 / 0.05) patches (Mirzasoleiman et al.: Lazier
  than lazy greedy, 2015): 1 - 1/e - 0.05 in expectation over draws, N^2 ln 20 in all. The draw is one for all
  images, so that none depends on another. For long sequences.
- "auto": stochastic above 1,024 patches, else elimination where r < N - r, else greedy.

What is sequential is done by `hybridmerge::select`, an operator of its own (selection.py), which torch.compile and
torch.export keep whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .contract import Assignment, MergeContext
from .selection import select
from .tokens import take

SELECTIONS = ("auto", "greedy", "elimination", "stochastic")
LONG = 1024  # patches


def facility_location(metric: Tensor, r: int, context: MergeContext, form: str = "auto") -> Assignment:
    """Selects N - r patches by facility location and merges each of the others into the one most similar to it.

    Where patches tie, forward forms select the lower position, elimination drops it. The selected patches stay in their
    old order.

    Args:
        metric: (B, N, D) float32.
        r: tokens to remove, 0 <= r < N.
        context: its size weighs the patches.
        form: one of SELECTIONS.

    Returns:
        An assignment to N - r output patches.
    """
    patches = metric.shape[1]
    unit = F.normalize(metric, dim=-1)  # a zero vector stays zero: similarity 1/2 to everything
    similarity = (unit @ unit.transpose(1, 2) + 1) / 2
    kept = select(similarity, context.size, patches - r, chosen_form(form, patches, r))  # (B, N - r), ascending

    stays = torch.zeros_like(context.size).scatter(1, kept, 1.0)
    gone = stays.argsort(dim=1, stable=True)[:, :r]  # what does not stay, in order
    rows = take(similarity, gone)  # (B, r, N)
    place = stays.cumsum(dim=1).long() - 1
    partner = place.gather(1, (rows + stays.unsqueeze(1)).argmax(dim=-1))  # + 1: nothing that goes is more similar
    return Assignment(place.scatter(1, gone, partner), patches - r)


def chosen_form(form: str, patches: int, r: int) -> str:
    """What "auto" stands for."""
    if form != "auto":
        return form
    if patches > LONG:
        return "stochastic"
    return "elimination" if r < patches - r else "greedy"
