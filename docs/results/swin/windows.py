"""Swin and SwinV2 of timm and torchvision, with tokens merged inside their windows.

A stage attends in windows, and every second block in windows shifted by half a window. The borders of both cut the map
into cells; with windows of 7 shifted by 3 these are 3 or 4 patches wide. A window of either kind consists of four whole
cells. So tokens that merge inside cells, as many in each cell of one shape, stay whole in both kinds of windows, every
window keeps as many tokens as every other, and a shift is a roll of cells. Tokens can therefore merge once and stay
merged up to the end of the stage, where the map is restored for the next stage.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.merging import MERGERS, Tokens, initial_tokens, log_size, merge, unmerge
from models.merging.wrapping.equations import between_tokens


class Attention:
    """What a window attention of timm or torchvision, of Swin or SwinV2, computes from tokens in windows."""

    def __init__(self, block: Any) -> None:
        self.attn = attn = block.attn
        self.cosine = hasattr(attn, "logit_scale")
        self.heads = attn.num_heads

    def qkv(self, x: Tensor) -> Tensor:
        """Tokens (..., T, C) -> queries, which are scaled, keys and values, (3, ..., heads, T, head_dim)."""
        attn, bias = self.attn, self.attn.qkv.bias
        if self.cosine:
            bias = self._bias_without_keys()
        projected = F.linear(x, attn.qkv.weight, bias)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        if self.cosine:
            scale = attn.logit_scale.clamp(max=4.6051702).exp()  # log 100
            q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        else:
            q = q * q.shape[-1] ** -0.5
        return torch.stack([q, k, v])

    def _bias_without_keys(self) -> Tensor:
        if hasattr(self.attn, "q_bias"):
            return torch.cat([self.attn.q_bias, self.attn.k_bias, self.attn.v_bias])
        query, _, value = self.attn.qkv.bias.chunk(3)
        return torch.cat([query, torch.zeros_like(query), value])

    def position_bias(self) -> Tensor:
        """The bias of a window's patches on each other, (heads, w x w, w x w)."""
        attn = self.attn
        if hasattr(attn, "get_relative_position_bias"):  # torchvision
            bias: Tensor = attn.get_relative_position_bias()[0]
        elif self.cosine:
            table = attn.cpb_mlp(attn.relative_coords_table).view(-1, self.heads)
            bias = 16 * torch.sigmoid(table[attn.relative_position_index].permute(2, 0, 1))
        else:
            bias = attn._get_rel_pos_bias()[0]
        return bias


class Cells:
    """How windows of so many patches a side, and these shifted, cut a map into cells.

    A map (B, H, W, C) becomes (B, rows, columns, window^2, C): windows, and the patches of each one cell by cell.

    Args:
        grid: rows and columns of the map, multiples of the window.
        window: patches a side.
        shift: of every second block; 0: windows are cells.
    """

    def __init__(self, grid: tuple[int, int], window: int, shift: int) -> None:
        self.windows, self.window, self.shift = (grid[0] // window, grid[1] // window), window, shift
        sides = [range(shift), range(shift, window)] if shift else [range(window)]
        self.shapes = [(len(rows), len(columns)) for rows, columns in product(sides, sides)]
        number = range(len(sides))
        # The first cells of a window belong, where windows are shifted, to the window before.
        self.moves = [[dim for dim, part in enumerate(key) if part == 0] for key in product(number, number)]
        places = [(row, column) for rows, columns in product(sides, sides) for row, column in product(rows, columns)]
        self.order = torch.tensor([row * window + column for row, column in places])
        inside = [((row - shift) % window, (column - shift) % window) for row, column in places]
        self.shifted_order = torch.tensor([row * window + column for row, column in inside])
        self.counts = [rows * columns for rows, columns in self.shapes]

    def split(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, rows, columns, window^2, C)."""
        parts = x.unflatten(1, (self.windows[0], self.window)).unflatten(3, (self.windows[1], self.window))
        return parts.transpose(2, 3).flatten(3, 4)[:, :, :, self.order]

    def join(self, x: Tensor) -> Tensor:
        """(B, rows, columns, window^2, C) -> (B, H, W, C)."""
        parts = x[:, :, :, self.order.argsort()].unflatten(3, (self.window, self.window))
        return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def roll(self, x: Tensor, counts: list[int], by: int) -> Tensor:
        """Moves cells to the windows of shifted blocks (by = -1) and back (by = 1); x (B, rows, columns, T, ...)."""
        parts = x.split(counts, dim=3)
        moved = [
            part.roll([by] * len(dims), [1 + dim for dim in dims]) if dims else part
            for part, dims in zip(parts, self.moves, strict=True)
        ]
        return torch.cat(moved, dim=3)

    def mask(self, counts: list[int], device: torch.device) -> Tensor:
        """What shifted windows at the borders must not see, (rows, columns, T, T): -100, as in both libraries."""
        rows, columns = self.windows
        last_row = (torch.arange(rows) == rows - 1)[:, None, None]
        last_column = (torch.arange(columns) == columns - 1)[None, :, None]
        side = [torch.tensor([dim in dims for dims in self.moves]) for dim in (0, 1)]
        region = last_row * side[0] * 2 + last_column * side[1]  # (rows, columns, cells)
        region = region[:, :, [cell for cell, count in enumerate(counts) for _ in range(count)]]
        return ((region[..., None] != region[..., None, :]) * -100.0).to(device)


class MergedStage(nn.Module):
    """The blocks of a stage; replaces their container.

    Args:
        blocks: of timm or torchvision.
        start: the block that merges, between its attention and its MLP; None: no block does.
        method: a name in MERGERS that needs neither attention nor a learned part.
        rate: the share of tokens that each cell keeps, rounded up.
        bias: of merged tokens: "mean" over all pairs of members, or that of the "first" members.
    """

    def __init__(
        self, blocks: nn.Module, start: int | None, method: str = "tome", rate: float = 0.5, bias: str = "mean"
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks.children())
        self.start, self.merger, self.rate, self.bias = start, MERGERS[method], rate, bias
        self.v2 = hasattr(self.blocks[0].attn, "logit_scale")

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        cells = self._cells(x)
        x, counts, tokens = cells.split(x), cells.counts, None
        for position, block in enumerate(self.blocks):
            shifted = position % 2 == 1 and cells.shift > 0
            source = cells.roll(x, counts, -1) if shifted else x
            out, k = self._attend(block, source, cells, shifted, counts, tokens)
            if shifted:
                out = cells.roll(out, counts, 1)
            x = x + self._path(block, 0, block.norm1(out) if self.v2 else out)
            if position == self.start:
                metric = k.mean(-3)
                x, tokens, counts = self._merge(x, cells.roll(metric, counts, 1) if shifted else metric, cells)
            mlp = block.norm2(block.mlp(x)) if self.v2 else block.mlp(block.norm2(x))
            x = x + self._path(block, 1, mlp)
        if tokens is not None:
            x = unmerge(x.flatten(0, 2), tokens).unflatten(0, x.shape[:3])
        return cells.join(x)

    def _cells(self, x: Tensor) -> Cells:
        attn = self.blocks[0].attn
        window, grid = attn.window_size[0], (x.shape[1], x.shape[2])
        if grid[0] % window or grid[1] % window:
            raise ValueError(f"a map of {grid} does not consist of windows of {window}")
        return Cells(grid, window, window // 2 if max(grid) > window and len(self.blocks) > 1 else 0)

    def _path(self, block: Any, which: int, x: Tensor) -> Tensor:
        """Stochastic depth."""
        paths = [block.drop_path1, block.drop_path2] if hasattr(block, "drop_path1") else [block.stochastic_depth] * 2
        out: Tensor = paths[which](x)
        return out

    def _attend(
        self, block: Any, x: Tensor, cells: Cells, shifted: bool, counts: list[int], tokens: Tokens | None
    ) -> tuple[Tensor, Tensor]:
        """Attention of x (B, rows, columns, T, C) and its keys (B, rows, columns, heads, T, head_dim)."""
        attention = Attention(block)
        q, k, v = attention.qkv(x if self.v2 else block.norm1(x))
        order = cells.shifted_order if shifted else cells.order
        bias = attention.position_bias()[:, order][:, :, order]
        if tokens is not None:
            bias = self._between(bias, self._rolled(tokens, cells, counts) if shifted else tokens)
            bias = bias.unflatten(0, x.shape[:3])
        if shifted:
            bias = bias + cells.mask(counts, x.device).unsqueeze(-3)
        shape = (-1, *q.shape[-3:])
        bias = bias.expand(*q.shape[:-1], -1).reshape(-1, *bias.shape[-3:]) if bias.ndim > 3 else bias
        parts = (part.reshape(shape) for part in (q, k, v))
        out = F.scaled_dot_product_attention(*parts, attn_mask=bias.to(v.dtype), scale=1.0)
        out = out.transpose(1, 2).flatten(2).view(x.shape)
        return block.attn.proj(out), k

    def _between(self, bias: Tensor, tokens: Tokens) -> Tensor:
        """The bias (heads, w x w, w x w) between merged tokens, with log size: (windows, heads, T, T)."""
        if self.bias == "mean":
            position = between_tokens(bias, tokens)
        else:
            many = torch.arange(tokens.index.shape[1], device=bias.device).expand_as(tokens.index)
            first = torch.zeros_like(tokens.size, dtype=torch.int64)
            first = first.scatter_reduce(1, tokens.index, many, "amin", include_self=False)
            position = bias[:, first[:, :, None], first[:, None]].transpose(0, 1)
        return position + log_size(tokens)[:, None, None]

    def _merge(self, x: Tensor, metric: Tensor, cells: Cells) -> tuple[Tensor, Tokens, list[int]]:
        """Merges x (B, rows, columns, T, C) inside cells: x, the state of windows, and the tokens left of each cell."""
        parts, index, size, counts, before = [], [], [], [], 0
        shape = x.shape[:3]
        split = zip(x.split(cells.counts, 3), metric.split(cells.counts, 3), cells.shapes, strict=True)
        for part, compared, grid in split:
            part = part.flatten(0, 2)
            r = min(int(part.shape[1] * (1 - self.rate)), self.merger.at_most(part.shape[1]))
            if self.merger.shrink is not None:
                rows, columns = self.merger.shrink(grid, r)
                r = part.shape[1] - rows * columns
            merged, tokens = merge(part, initial_tokens(part, grid), compared.flatten(0, 2), r, self.merger, 0)
            parts.append(merged.unflatten(0, shape))
            index.append(tokens.index + before)
            size.append(tokens.size)
            counts.append(merged.shape[1])
            before += merged.shape[1]
        return torch.cat(parts, 3), Tokens(torch.cat(index, 1), torch.cat(size, 1)), counts

    def _rolled(self, tokens: Tokens, cells: Cells, counts: list[int]) -> Tokens:
        """The state of windows, in the windows of shifted blocks. A cell's indices do not depend on the window."""
        count = tokens.index.shape[0] // (cells.windows[0] * cells.windows[1])
        shape = (count, *cells.windows)
        index = cells.roll(tokens.index.unflatten(0, shape), cells.counts, -1).flatten(0, 2)
        size = cells.roll(tokens.size.unflatten(0, shape), counts, -1).flatten(0, 2)
        return Tokens(index, size)


class MergedBlock(nn.Module):
    """A block that merges inside its own windows before attention and restores the map behind its MLP.

    x + unmerge(block(merge x) - merge x): the other blocks see a map, whatever their windows are.
    """

    def __init__(self, block: Any, shifted: bool, method: str = "tome", rate: float = 0.5) -> None:
        super().__init__()
        self.inner = MergedStage(nn.ModuleList([block]), None, method, rate)
        self.shifted = shifted

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        inner, block = self.inner, self.inner.blocks[0]
        window = block.attn.window_size[0]
        shift = window // 2 if self.shifted and max(x.shape[1:3]) > window else 0
        cells = Cells((x.shape[1], x.shape[2]), window, shift)
        each = cells.split(x)
        source = cells.roll(each, cells.counts, -1) if shift else each
        metric = source if inner.v2 else block.norm1(source)
        few, tokens, counts = inner._merge(source, metric, cells)
        out, _ = inner._attend(block, few, cells, shift > 0, counts, tokens)
        done = few + inner._path(block, 0, block.norm1(out) if inner.v2 else out)
        mlp = block.norm2(block.mlp(done)) if inner.v2 else block.mlp(block.norm2(done))
        change = done + inner._path(block, 1, mlp) - few
        change = unmerge(change.flatten(0, 2), tokens).unflatten(0, x.shape[:1] + cells.windows)
        return cells.join(each + (cells.roll(change, cells.counts, 1) if shift else change))


def stages_of(model: Any) -> list[tuple[nn.Module, str]]:
    """Where a model keeps the blocks of its stages: (module, attribute), first stage first."""
    if hasattr(model, "layers"):
        return [(layer, "blocks") for layer in model.layers]
    return [(model.features, str(1 + 2 * number)) for number in range(len(model.features) // 2)]


def replace(model: nn.Module, build: dict[int, Callable[[nn.Module], nn.Module]]) -> nn.Module:
    """Replaces the blocks of stages, counted from 1, by what `build` makes of them."""
    for number, (module, name) in enumerate(stages_of(model), 1):
        if number in build:
            setattr(module, name, nn.Sequential(build[number](getattr(module, name))))  # timm loops over blocks
    return model


def staged(model: nn.Module, stages: tuple[int, ...], start: int | None = 0, **options: Any) -> nn.Module:
    """A copy that merges once in each of these stages."""
    return replace(deepcopy(model), dict.fromkeys(stages, partial(MergedStage, start=start, **options)))


def in_each_block(model: nn.Module, stages: tuple[int, ...]) -> nn.Module:
    """A copy that merges in every block of these stages, and restores the map behind it."""

    def each(blocks: nn.Module) -> nn.Module:
        return nn.Sequential(*(MergedBlock(block, i % 2 == 1) for i, block in enumerate(blocks.children())))

    return replace(deepcopy(model), dict.fromkeys(stages, each))
