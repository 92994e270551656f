"""What a wrapped model costs, for any schedule, from a few traces: multiply-adds (MACs) of one image.

Nothing is computed: operators run on tensors without data and are counted by their shapes. A block's cost is a
polynomial of degree two in the tokens that enter it and the patches that it removes, apart from the parity of what a
method matches, which is a few MACs in millions. So a dozen traces of one block are enough for every schedule, and equal
blocks share them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..budget import Cost, CountError, Schedule
from ..contract import Grid, Merger
from ..layer import MergeLayer
from ..tokens import Soft, Tokens
from .families import kind_of

aten = torch.ops.aten
M = TypeVar("M", bound=nn.Module)
Sample = tuple[int, int, Grid | None]  # patches, removed, and the grid that the patches form, if any


def _product(left: int) -> Callable[[tuple[Any, ...], Any], int]:
    """Each element of a matrix product costs the last extent of its left factor, which is argument `left`."""
    return lambda args, out: out.numel() * args[left].shape[-1]


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    """Weight (C_out, C_in / groups, kernel...); a transposed convolution spends as much at each input position."""
    weight, transposed = args[1], args[6]
    positions: int = args[0].numel() if transposed else out.numel()
    kernel: int = prod(weight.shape[1:])
    return positions * kernel


def _attention(args: tuple[Any, ...], out: tuple[Any, ...]) -> int:
    """q k^T and the product with v: q (..., T, D), k (..., S, D), v (..., S, Dv)."""
    q, k, v = args[:3]
    return int(prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1]))


# Operators as they reach the dispatcher: linear layers and matmul are `mm` and its relatives by then.
MACS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.mm: _product(0),
    aten.bmm: _product(0),
    aten.mv: _product(0),
    aten.dot: lambda args, out: args[0].numel(),
    aten.addmm: _product(1),
    aten.addmv: _product(1),
    aten.baddbmm: _product(1),
    aten._cdist_forward: _product(0),
    aten.convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
_MULTIPLIES = re.compile(r"mm|mv|conv|attention|einsum|dot|cdist|lstm|gru")


class CountMacs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the MACs of everything that runs inside.

    Raises:
        CountError: an operator that multiplies, by its name, and is not in MACS.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: int = 0

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count, name = MACS.get(func.overloadpacket), str(func.name())  # type: ignore[no-untyped-call]
        if count is not None:
            self.macs += count(args, out)
        elif _MULTIPLIES.search(name.partition("::")[2]):
            raise CountError(f"{name}: add its MACs to MACS in {__name__}")
        return out


@contextmanager
def _without_data() -> Iterator[FakeTensorMode]:
    """Tensors made inside have no data; encoder layers of torch run operator by operator, not as one fused kernel."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)  # transformers' DINOv3 keeps the places of its patches
        with fake as mode, torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield mode
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _empty_copy(module: M) -> M:
    """Returns a copy in evaluation mode without data and hooks, in fp32 on the CPU. Call it inside `_without_data`."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(tensor.shape, dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    twin = copy.deepcopy(module, memo).eval()
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return twin


def count(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Returns the MACs of one image (C, H, W) through a model in evaluation mode."""
    with _without_data():
        twin = _empty_copy(model)
        counter = CountMacs()
        with counter:
            twin(torch.zeros(1, *image))
    return counter.macs


class BlockCost:
    """The cost of one block and its merging, for any number of patches.

    Args:
        block: a block of a wrapped model.
        layer: its merging.
        grid: rows and columns of the patches that enter the first block.
    """

    def __init__(self, block: nn.Module, layer: MergeLayer, grid: Grid) -> None:
        self.grid, patches = grid, prod(grid)
        self.soft = layer.merger.mixes
        plain: list[Sample] = [(max(patches // part, 1), 0, None) for part in (1, 2, 3, 5)]
        with _without_data():
            self.block, self.layer = _empty_copy(block), _empty_copy(layer)
            self.prefix, self.dim = layer.prefix, layer.dim
            self._plain, self._merging = (self._polynomials(part) for part in (plain, _samples(layer.merger, grid)))

    def __call__(self, patches: int, removed: int, *, matches: bool = False) -> float:
        """Returns the MACs of the block where `patches` enter it and it removes `removed` of them.

        Args:
            patches: the patches that enter it.
            removed: the patches that it removes.
            matches: whether it matches also where it removes nothing.
        """
        return (self._merging if removed or matches else self._plain)[self._is_soft(patches)](patches, removed)

    def _is_soft(self, patches: int) -> bool:
        """Whether the state of so many patches is soft, and has products of its own."""
        return self.soft and patches < prod(self.grid)

    def _polynomials(self, samples: list[Sample]) -> dict[bool, Callable[[int, int], float]]:
        """Returns the polynomials of the samples whose state is soft, and of the others."""
        parts = {soft: [sample for sample in samples if self._is_soft(sample[0]) == soft] for soft in (False, True)}
        return {
            soft: _fitted([(n, r) for n, r, _ in part], [self._trace(*sample) for sample in part])
            for soft, part in parts.items()
        }

    def _trace(self, patches: int, removed: int, grid: Grid | None) -> int:
        """Runs the block once, on patches that form this grid, or none."""
        prefix = self.prefix
        index = torch.zeros(1, prefix + prod(self.grid), dtype=torch.int64)
        tokens = Tokens(index, torch.ones(1, prefix + patches), grid, input_grid=self.grid)
        if self._is_soft(patches):
            tokens = tokens._replace(soft=Soft(torch.zeros(*index.shape, prefix + patches), prefix + patches))
        if removed:
            self.layer.resize(patches - removed)
        x = torch.zeros(1, prefix + patches, self.dim)
        counter = CountMacs()
        with counter:
            kind_of(self.block, "block").run(self.block, x, tokens, removed, self.layer, None, own=False)
        return counter.macs


def _samples(merger: Merger, grid: Grid) -> list[Sample]:
    """Returns (patches, removed, grid) of merges that the method can make, as different as possible."""
    patches = prod(grid)
    if merger.shrink is None:
        sizes = [max(patches // part, 1) for part in ((1, 2, 3) if not merger.mixes else (1, 2, 3, 5))]
        most = {n: merger.at_most(n) for n in sizes}
        samples = {(n, max(most[n] // part, 1), None) for n in sizes for part in (1, 2, 4) if most[n]}
        return sorted(samples, key=lambda sample: sample[:2])
    grids: list[Grid] = [grid]
    grid_before: dict[tuple[int, int], Grid] = {}
    for before in grids:  # grows while a method makes new grids of the old ones
        for part in (1, 2, 4, 8):
            after = merger.shrink(before, max(prod(before) // part, 1))
            if after != before and len(grid_before) < 16:
                grid_before[prod(before), prod(before) - prod(after)] = before
                grids += [after] if after not in grids else []
    return [(n, r, before) for (n, r), before in grid_before.items()]


def _fitted(points: list[tuple[int, int]], macs: list[int]) -> Callable[[int, int], float]:
    """Returns the polynomial of degree two in (patches, removed) that is nearest to the MACs traced at the points."""
    if not points:
        return lambda patches, removed: 0.0
    scale = max(n for n, _ in points)

    def features(patches: int, removed: int) -> list[float]:
        n, r = patches / scale, removed / scale
        return [1.0, n, r, n * n, n * r, r * r]

    solution, *_ = np.linalg.lstsq(np.array([features(*point) for point in points]), np.array(macs, float), rcond=None)
    return lambda patches, removed: float(solution @ features(patches, removed))


def traced_cost(
    unmerged: int, layers: Iterable[Any], blocks: list[nn.Module], grid: Grid, matching: Collection[int] = ()
) -> Cost:
    """Returns the cost of a model as a function of its schedule.

    Args:
        unmerged: MACs of one image without merging.
        layers: the merge layer of each block.
        blocks: the blocks.
        grid: rows and columns of the patches that enter the first block.
        matching: the blocks, counted from 0, that match also where they remove nothing.
    """
    costs: dict[Any, BlockCost] = {}
    keys = [(type(block), *((name, p.shape) for name, p in block.named_parameters())) for block in blocks]
    for key, block, layer in zip(keys, blocks, layers, strict=True):
        if key not in costs:
            costs[key] = BlockCost(block, layer, grid)
    patches = prod(grid)
    rest = unmerged - sum(costs[key](patches, 0) for key in keys)
    soft, prefix, dim = (getattr(costs[keys[-1]], name) for name in ("soft", "prefix", "dim"))

    def cost(schedule: Schedule) -> int:
        total, left = rest, patches
        for block, (key, removed) in enumerate(zip(keys, schedule, strict=True)):
            total += costs[key](left, removed, matches=block in matching)
            left -= removed
        if soft and left < patches:  # a token for each input token again, by shares
            total += (prefix + patches) * (prefix + left) * dim
        return round(total)

    return cost
