"""The operator that selects which patches to keep: greedy maximisation of facility location, for a batch of images.

The CPU kernel of `select` updates, in each step, only the rows of the similarity matrix that the last step changed,
which are few after the first steps. Their number differs between images; NumPy has much less overhead than torch for
such small operations. The kernel for all other devices is dense and never synchronises with the device. Both kernels
select the same patches, because ties do not depend on rounding. Exact ties are common: two patches that are nearest to
each other and to no other patch gain or lose exactly the same, whichever of them is taken. So any value within TIE of
the best counts as tied with it, and the lower position wins, for every kernel and every batch.
"""

from __future__ import annotations

from math import ceil, log

import numpy as np
import torch
from torch import Tensor

from ..tokens import take

TIE = 1e-6  # as a fraction of the total size of all patches, which is the value of F for all patches
EPSILON = 0.05  # expected loss of the stochastic form relative to the bound


@torch.library.custom_op("hybridmerge::select", mutates_args=())
def select(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    """Selects the patches to keep.

    Args:
        similarity: (B, N, N) float32, symmetric, at least 0.
        size: (B, N) float32.
        count: number of patches to keep, 1 to N.
        form: "greedy", "elimination" or "stochastic".

    Returns:
        Positions (B, count) int64, ascending.
    """
    return DENSE[form](similarity, size, count)


@select.register_kernel("cpu")
def _(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    if form == "stochastic":
        return DENSE[form](similarity, size, count)
    return torch.from_numpy(np.ascontiguousarray(SPARSE[form](similarity.numpy(), size.numpy(), count)))


@select.register_fake
def _(similarity: Tensor, size: Tensor, count: int, form: str) -> Tensor:
    return similarity.new_empty(similarity.shape[0], count, dtype=torch.int64)


def greedy_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Forward greedy: takes, `count` times, the patch j with the greatest sum_i size_i max(sim_ij - best_i, 0)."""
    weighted = similarity * size.unsqueeze(-1)  # (B, N, N): value of patch i if represented by patch j
    best = torch.zeros_like(size)
    taken = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    kept = []
    for _ in range(count):
        value = torch.maximum(weighted, best.unsqueeze(-1)).sum(dim=1)
        chosen = _first_largest(value - taken, tie)
        kept.append(chosen)
        taken.scatter_(1, chosen, torch.inf)
        best = torch.maximum(best, _column(weighted, chosen))
    return torch.cat(kept, dim=1).sort(dim=1).values


def elimination_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Backward: repeatedly drops the patch with the smallest loss, sum_i size_i (best_i - second_i) over the patches i
    that it represents."""
    alive = similarity.clone()
    dropped = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    for _ in range(similarity.shape[1] - count):
        (best, second), (server, _) = (part.unbind(-1) for part in alive.topk(2, dim=-1))
        loss = dropped.scatter_add(1, server, size * (best - second))
        chosen = _first_largest(-loss, tie)
        dropped.scatter_(1, chosen, torch.inf)
        alive.scatter_(2, chosen.unsqueeze(1).expand(-1, alive.shape[1], -1), -1.0)
    return dropped.argsort(dim=1, stable=True)[:, :count]


def stochastic_dense(similarity: Tensor, size: Tensor, count: int) -> Tensor:
    """Forward greedy where each step considers a sample of the remaining patches, drawn by position and step alone."""
    patches = size.shape[1]
    sample = min(ceil(patches / count * log(1 / EPSILON)), patches)
    weighted = similarity * size.unsqueeze(1)  # row j: value of each patch i if represented by j
    best = torch.zeros_like(size)
    taken = torch.zeros_like(size)
    tie = TIE * size.sum(dim=1, keepdim=True)
    draws = torch.rand(count, patches, generator=torch.Generator().manual_seed(0)).to(size.device)
    kept = []
    for step in range(count):
        rows = (draws[step] - taken).topk(min(sample, patches - step), dim=1).indices  # (B, sample)
        rows = rows.sort(dim=1).values
        candidates = take(weighted, rows)
        value = torch.maximum(candidates, best.unsqueeze(1)).sum(dim=-1)
        chosen = _first_largest(value, tie)
        best = torch.maximum(best, _column(candidates.transpose(1, 2), chosen))
        chosen = rows.gather(1, chosen)
        kept.append(chosen)
        taken.scatter_(1, chosen, torch.inf)
    return torch.cat(kept, dim=1).sort(dim=1).values


def _first_largest(value: Tensor, tie: Tensor) -> Tensor:
    """The first position (B, 1) whose value (B, N) is the greatest, or within tie (B, 1) of it."""
    return (value >= value.amax(dim=1, keepdim=True) - tie).to(torch.uint8).argmax(dim=1, keepdim=True)


def _column(matrix: Tensor, column: Tensor) -> Tensor:
    """One column of each image's matrix: (B, N, M), (B, 1) -> (B, N)."""
    return matrix.gather(2, column.unsqueeze(1).expand(-1, matrix.shape[1], -1)).squeeze(-1)


def greedy_sparse(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """The same selection as `greedy_dense`; a step updates only gains of patches that are better represented now."""
    batch, patches = size.shape
    weighted = (similarity * size[:, :, None]).reshape(batch * patches, patches)
    offers = np.ascontiguousarray((similarity * size[:, None, :]).reshape(batch * patches, patches))  # row j: to each i
    first = np.arange(batch) * patches
    best = np.zeros(batch * patches, np.float32)
    gain = offers.sum(axis=1, dtype=np.float64).reshape(batch, patches)
    tie = TIE * size.sum(axis=1, keepdims=True)
    kept = np.empty((count, batch), np.int64)
    for step in range(count):
        kept[step] = (gain >= gain.max(axis=1, keepdims=True) - tie).argmax(axis=1)
        chosen = first + kept[step]
        gain.reshape(-1)[chosen] = -np.inf
        offered = offers[chosen].reshape(-1)
        rows = np.flatnonzero(offered > best)
        low, high = best[rows, None], offered[rows, None]
        lost = np.clip(weighted[rows], low, high)
        lost -= low
        _subtract_by_image(gain, lost, rows // patches)
        best[rows] = offered[rows]
    return np.sort(kept.T, axis=1)


def _subtract_by_image(gain: np.ndarray, lost: np.ndarray, image: np.ndarray) -> None:
    """Subtracts from gain (B, N), for each image, the sum of its rows of lost (A, N); `image` (A,) is ascending."""
    if len(image):
        starts = np.flatnonzero(np.diff(image, prepend=-1))
        gain[image[starts]] -= np.add.reduceat(lost, starts, axis=0, dtype=np.float64)


def elimination_sparse(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """The same selection as `elimination_dense`; a step updates only patches whose best or second was dropped."""
    batch, patches = size.shape
    rows_of = similarity.reshape(batch * patches, patches)
    weight = size.reshape(-1).astype(np.float64)
    first = np.arange(batch) * patches
    two = torch.from_numpy(similarity).topk(2, dim=-1) if patches > 1 else None
    if two is None or count == patches:
        first_ones: np.ndarray = np.broadcast_to(np.arange(patches)[:count], (batch, count)).copy()
        return first_ones
    best, second = (np.ascontiguousarray(v).reshape(-1) for v in np.moveaxis(two.values.numpy(), -1, 0))
    server, runner_up = (
        (np.ascontiguousarray(i) + first[:, None]).reshape(-1) for i in np.moveaxis(two.indices.numpy(), -1, 0)
    )
    loss = np.bincount(server, weight * (best - second), batch * patches)
    by_image, tie = loss.reshape(batch, patches), TIE * size.sum(axis=1, keepdims=True)
    dropped = np.zeros((batch, patches), np.float32)
    for _ in range(patches - count):
        chosen = (by_image <= by_image.min(axis=1, keepdims=True) + tie).argmax(axis=1) + first
        dropped.reshape(-1)[chosen] = np.inf
        loss[chosen] = np.inf
        column = chosen[:, None]
        rows = np.flatnonzero((server.reshape(batch, -1) == column) | (runner_up.reshape(batch, -1) == column))
        image = rows // patches
        lost_best = server[rows] == chosen[image]
        np.add.at(loss, server[rows], -weight[rows] * (best[rows] - second[rows]))
        server[rows] = np.where(lost_best, runner_up[rows], server[rows])
        best[rows] = np.where(lost_best, second[rows], best[rows])
        others = rows_of[rows] - dropped[image]
        everyone = np.arange(len(rows))
        others[everyone, server[rows] - first[image]] = -np.inf
        nearest = others.argmax(axis=1)
        second[rows], runner_up[rows] = others[everyone, nearest], nearest + first[image]
        np.add.at(loss, server[rows], weight[rows] * (best[rows] - second[rows]))
    kept: np.ndarray = np.nonzero(dropped == 0)[1].reshape(batch, count)
    return kept


DENSE = {"greedy": greedy_dense, "elimination": elimination_dense, "stochastic": stochastic_dense}
SPARSE = {"greedy": greedy_sparse, "elimination": elimination_sparse}
