"""Merging inside one block: the layer between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modes import without_autocast
from ..settings import UserError
from .contract import Merger, Removal
from .tokens import Tokens, merge

QUERIES = 64  # tokens whose attention is computed at a time, where all attention is needed
METRICS = ("keys", "tokens", "learned")


class Scores(NamedTuple):
    """What a block's attention scores are computed from: softmax(q k^T / sqrt(head_dim) + bias)."""

    q: Tensor  # (B, heads, T, head_dim)
    k: Tensor  # (B, heads, T, head_dim)
    bias: Tensor | None  # broadcastable to (B, heads, T, T); None: no bias
    unrotated: Tensor | None = None  # keys before their rotation by position; None: they are not rotated
    v: Tensor | None = None  # (B, heads, T, head_dim): the values, for methods that request them (Merger.values)

    @property
    def keys(self) -> Tensor:
        """Keys that say what a token shows, and not where it is."""
        return self.k if self.unrotated is None else self.unrotated


class Attended:
    """A block's attention, as its MergeLayer and the hooks on it receive it.

    Args:
        source: the attention's input, (B, T, C).
        compute: returns the scores. It is called when they are first used, since a wrapped block in which nothing is
            merged calls its own attention, which does not return them.
    """

    def __init__(self, source: Tensor, compute: Callable[[], Scores]) -> None:
        self.source, self._compute = source, compute
        self._scores: Scores | None = None

    @property
    def scores(self) -> Scores:
        """Queries, keys and bias."""
        if self._scores is None:
            self._scores = self._compute()
        return self._scores


class MergeLayer(nn.Module):
    """Merging in a block, between attention and MLP.

    Every block with merging calls its layer in every forward pass, also where it removes no patch (r = 0), so that a
    hook on it sees the tokens and the attention of every block.

    Args:
        merger: the method with its options.
        metric: what tokens are compared by. "keys": the keys averaged over the heads (Bolya et al., 2023), before a
            rotation by position; "tokens":
            the tokens themselves; "learned": a linear head on the attention's input, as wide as one attention head
            (Lee and Hong, 2024). The head learns only from a method with a soft form; with others it stays as it is.
        prefix: number of leading tokens that are protected.
        depth: the block's number divided by the number of blocks.
        dim: width of a token.
        head_dim: width of an attention head.
        leaves: number of patches that the layer leaves, for methods with a part that learns; None: it removes none.

    Attributes:
        pooling: that part; None for other methods, and where nothing is removed.
    """

    def __init__(
        self, merger: Merger, metric: str, prefix: int, depth: float, dim: int, head_dim: int, leaves: int | None = None
    ) -> None:
        super().__init__()
        self.merger, self.metric, self.prefix, self.depth, self.dim = merger, metric, prefix, depth, dim
        self.head = nn.Linear(dim, head_dim) if metric == "learned" else None
        self.leaves: int | None = None
        self.pooling: nn.Module | None = None
        self.resize(leaves)

    def resize(self, leaves: int | None) -> None:
        """Makes a new `pooling` that leaves so many patches; where it does so already, or for any number, it stays."""
        if self.merger.pooling is None or leaves == self.leaves:
            return
        self.leaves = leaves
        if leaves is None:
            self.pooling = None
        elif self.pooling is None or self.merger.sized:
            self.pooling = self.merger.pooling(self.dim, leaves)

    def forward(self, x: Tensor, tokens: Tokens, r: Removal, attended: Attended) -> tuple[Tensor, Tokens]:
        """Removes r patches by merging.

        Args:
            x: tokens after attention, (B, T, C).
            tokens: their state.
            r: number of patches to remove; 0 changes nothing. Adaptive: the number depends on the image.
            attended: the block's attention.

        Returns:
            Tokens (B, T - r, C) and their state; with Adaptive as `merge` returns them.

        Raises:
            UserError: the method has learned to leave another number of patches.
        """
        if r == 0:
            return x, tokens
        self._check_leaves(int(x.shape[1]) - self.prefix, r)  # while torch.jit traces, a shape holds tensors
        scores, attention = attended.scores, None
        if self.merger.attends is not None:
            attention = self._importance(scores, tokens, self.merger.attends)
            if self.merger.values:
                attention = attention * value_norms(scores.v)
        metric = self.compared(x, attended.source, scores.keys)
        if self.training and self.merger.soft is not None:
            assert isinstance(r, int), "no soft method has an adaptive form"
            with without_autocast(x.device.type):
                part = {} if self.pooling is None else {"pooling": self.pooling}
                softened: tuple[Tensor, Tokens] = self.merger.soft(x, tokens, metric, r, self.prefix, **part)
                return softened
        return merge(x, tokens, metric, r, self.merger, self.prefix, attention, self.depth, self.pooling)

    def _importance(self, scores: Scores, tokens: Tokens, of: str) -> Tensor:
        """What patches count by, (B, T) float32; see Merger.attention."""
        if of == "keys":
            return distinctness(scores.keys, tokens.size, self.prefix)
        return attention_received(scores.q, scores.k, scores.bias, of)

    def _check_leaves(self, patches: int, r: Removal) -> None:
        if self.merger.pooling is None:
            return
        assert isinstance(r, int), "no method with a part that learns has an adaptive form"
        if self.leaves is None or (self.merger.sized and patches - r != self.leaves):
            has = "it has learned nothing" if self.leaves is None else f"it has learned to leave {self.leaves}"
            raise UserError(
                f"merge.r = {r}: leaves {patches - r} of {patches} patches in a block where {has}; merge as in "
                "training, with images of that size, or not at all"
            )

    def compared(self, x: Tensor, source: Tensor, k: Tensor) -> Tensor:
        """What the method compares tokens by, (B, T, D) float32."""
        if self.metric == "keys":
            return k.mean(1, dtype=torch.float32)
        if self.head is None:
            return x.float()
        learned: Tensor = self.head(source.detach())
        return learned.float()


def resize_layers(layers: Iterable[MergeLayer], schedule: Iterable[int], patches: int) -> None:
    """Makes what the layers of a model learn anew, where a schedule needs other sizes; see `MergeLayer.resize`.

    Args:
        layers: one for each block.
        schedule: the number of patches that each block removes.
        patches: number of patches that enter the first block.
    """
    for layer, r in zip(layers, schedule, strict=True):
        patches -= r
        layer.resize(patches if r else None)


@torch.no_grad()
def value_norms(v: Tensor | None) -> Tensor:
    """The norm of each token's value, of all heads together: v (B, heads, T, head_dim) -> (B, T) float32."""
    if v is None:
        raise UserError("merge.method: it needs the values of attention, which this kind of block does not give")
    norms: Tensor = torch.linalg.vector_norm(v, dim=(1, 3), dtype=torch.float32)
    return norms


@torch.no_grad()
def distinctness(k: Tensor, size: Tensor, prefix: int) -> Tensor:
    """What patches can count by without attention: how far their keys are from the mean key.

    With unit keys k_i of a head, and sizes s_i,

        s_i (1 - cos(k_i, sum_j s_j k_j)) / 2        the mean over the heads

    Keys that differ from most others receive much attention (Park et al.: KeyDiff, 2025, arXiv:2504.15364, where it
    decides which keys of a language model to keep). As of attention, a merged patch has what its copies would have
    together, and the mean is that of the copies.

    Args:
        k: keys, (B, heads, T, head_dim).
        size: (B, T) float32.
        prefix: number of leading tokens that are not patches; they have 0, and take no part in the mean.

    Returns:
        (B, T) float32, from 0 to s_i.
    """
    patches = size[:, prefix:]
    unit = F.normalize(k[:, :, prefix:].float(), dim=-1)
    mean = F.normalize(patches[:, None, None] @ unit, dim=-1)  # (B, heads, 1, head_dim)
    apart = (1 - (unit @ mean.mT).squeeze(-1)).clamp(min=0).mean(1) / 2
    return F.pad(patches * apart, (prefix, 0))


@torch.no_grad()
def attention_received(q: Tensor, k: Tensor, bias: Tensor | None, of: str) -> Tensor:
    """The share of attention that each token receives, averaged over the heads, (B, T) float32.

    Args:
        q, k: queries and keys, (B, heads, T, head_dim).
        bias: added to the scores, broadcastable to (B, heads, T, T).
        of: "class": from the first token alone, T x head_dim MACs per head; "all": averaged over all T tokens, which
            costs T times as much. Computed for QUERIES tokens at a time: (B, heads, T, T) scores never exist at once.
    """
    heads, rows = q.shape[1], 1 if of == "class" else q.shape[2]
    scale, keys = q.shape[-1] ** -0.5, k.transpose(-2, -1)
    total: Tensor | None = None
    for first in range(0, rows, QUERIES):
        part = slice(first, min(first + QUERIES, rows))
        scores = ((q[:, :, part] * scale) @ keys).float()
        if bias is not None:
            scores = scores + (bias if bias.shape[-2] == 1 else bias[..., part, :])
        received = scores.softmax(dim=-1).sum(dim=(1, 2))
        total = received if total is None else total + received
    assert total is not None
    return total / (heads * rows)


@contextmanager
def hooked(modules: Iterable[nn.Module], read: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Calls `read` with each of the modules, its inputs and its output, whenever one has run in this context."""
    hooks = [module.register_forward_hook(read) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def tokens_of_images(model: nn.Module, blocks: int | None = None) -> Iterator[list[tuple[int, ...]]]:
    """Collects how many tokens every image has while a model runs in this context.

    The list gets an entry for each image: the number of tokens that enter the first block, then of those that leave
    each block, prefix tokens included.

    Args:
        model: a model that merges.
        blocks: how many of its blocks run; None: all.
    """
    layers = [module for module in model.modules() if isinstance(module, MergeLayer)][:blocks]
    found: list[tuple[int, ...]] = []
    running: list[tuple[int, ...]] = []  # of the images of one batch, by block

    def left(module: nn.Module, inputs: Any, output: tuple[Tensor, Tokens]) -> None:
        x, tokens = output
        batch, count, entering = int(x.shape[0]), int(x.shape[1]), int(tokens.index.shape[1])
        running.append(tokens.left or (count,) * batch)
        if len(running) == len(layers):
            found.extend(zip((entering,) * batch, *running, strict=True))
            running.clear()

    with hooked(layers, left):
        yield found
