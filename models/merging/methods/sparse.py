"""Facility location on a CPU: each step updates only the rows of the similarity matrix that it changes.

Their number differs between images, and NumPy has much less overhead than torch for such small operations. Most of the
time is still the number of calls. Few images are therefore processed one after another by code that makes few calls in
a step (`greedy`, `eliminate`), and many images together, by code that makes more of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TIE = 1e-6  # as a fraction of the total size of all patches, which is the value of F for all patches
FEW = 4  # images


def greedy_sparse(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """The same selection as `greedy_dense`: similarity (B, N, N), size (B, N) -> positions (B, count)."""
    if len(size) <= FEW:
        return _one_by_one(greedy, similarity, size, count)
    return _greedy_batch(similarity, size, count)


def elimination_sparse(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """The same selection as `elimination_dense`: similarity (B, N, N), size (B, N) -> positions (B, count)."""
    batch, patches = size.shape
    if count == patches:
        everyone: np.ndarray = np.broadcast_to(np.arange(patches), (batch, count)).copy()
        return everyone
    if batch <= FEW:
        return _one_by_one(eliminate, similarity, size, count)
    return _eliminate_batch(similarity, size, count)


def _one_by_one(kernel: Callable[..., np.ndarray], similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    return np.stack([kernel(*image, count) for image in zip(similarity, size, strict=True)])


def greedy(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """One image: similarity (N, N), size (N,) -> positions (count,), ascending."""
    weighted = similarity * size[:, None]  # value of patch i if represented by patch j
    gain = weighted.sum(axis=0, dtype=np.float64)
    best, tie = np.zeros_like(size), TIE * size.sum()
    for _ in range(count):
        chosen = int((gain >= gain.max() - tie).argmax())
        gain[chosen] = -np.inf
        offered = similarity[chosen] * size
        rows = (offered > best).nonzero()[0]
        low, high = best[rows, None], offered[rows, None]
        lost = weighted[rows]
        np.maximum(lost, low, out=lost)
        np.minimum(lost, high, out=lost)
        lost -= low
        gain -= lost.sum(axis=0, dtype=np.float64)
        best[rows] = offered[rows]
    return np.flatnonzero(gain == -np.inf)


def eliminate(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """One image: similarity (N, N), size (N,) -> positions (count,), ascending; count < N."""
    nearest, values = (part[:, 0] for part in _two_nearest(similarity[None]))
    losses = size.astype(np.float64) * (values[0] - values[1])  # of each patch, if the one that represents it goes
    loss = np.bincount(nearest[0], losses, len(size))
    (server, runner_up), (best, second) = nearest.tolist(), values.tolist()  # faster than arrays, one by one
    weight, lost = size.tolist(), losses.tolist()
    involved: list[list[int]] = [[] for _ in server]  # in whose row each patch is the best or the second
    for i, pair in enumerate(zip(server, runner_up, strict=True)):
        for j in pair:
            involved[j].append(i)

    gone, row, tie = np.zeros_like(size), np.empty_like(size), TIE * size.sum()
    for _ in range(len(size) - count):
        chosen = int((loss <= loss.min() + tie).argmax())
        loss[chosen] = gone[chosen] = np.inf
        changed, involved[chosen] = involved[chosen], []  # where a single patch is left, rows have no second: any is it
        for i in changed:
            if server[i] == chosen:
                server[i], best[i] = runner_up[i], second[i]
            else:
                loss[server[i]] -= lost[i]
            np.subtract(similarity[i], gone, out=row)
            row[server[i]] = -np.inf
            runner_up[i] = int(row.argmax())
            second[i] = float(row[runner_up[i]])
            involved[runner_up[i]].append(i)
            lost[i] = weight[i] * (best[i] - second[i])
            loss[server[i]] += lost[i]
    return np.flatnonzero(gone == 0)


def _two_nearest(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two largest of each row of (B, N, N): their positions (2, B, N), and their values (2, B, N)."""
    positions = np.empty((2, *similarity.shape[:2]), np.int64)
    values = np.empty(positions.shape, similarity.dtype)
    others, everyone = np.empty_like(similarity[0]), np.arange(similarity.shape[1])
    for b, rows in enumerate(similarity):  # one image fits into the processor's cache
        np.copyto(others, rows)
        for rank in range(2):
            positions[rank, b] = others.argmax(axis=1)
            values[rank, b] = others[everyone, positions[rank, b]]
            others[everyone, positions[rank, b]] = -np.inf
    return positions, values


def _greedy_batch(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """`greedy` for a batch of images."""
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


def _eliminate_batch(similarity: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """`eliminate` for a batch of images."""
    batch, patches = size.shape
    rows_of = similarity.reshape(batch * patches, patches)
    weight = size.reshape(-1).astype(np.float64)
    first = np.arange(batch) * patches
    nearest, values = _two_nearest(similarity)
    server, runner_up = (nearest + first[:, None]).reshape(2, -1)
    best, second = values.reshape(2, -1)
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
        closest = others.argmax(axis=1)
        second[rows], runner_up[rows] = others[everyone, closest], closest + first[image]
        np.add.at(loss, server[rows], weight[rows] * (best[rows] - second[rows]))
    kept: np.ndarray = np.nonzero(dropped == 0)[1].reshape(batch, count)
    return kept


SPARSE = {"greedy": greedy_sparse, "elimination": elimination_sparse}
