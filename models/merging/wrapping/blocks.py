"""The container that `wrap` substitutes: the model's own blocks, with merging between attention and MLP."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ...settings import UserError
from ..contract import Grid, Removal
from ..layer import MergeLayer, resize_layers
from ..schedule import Plan, check_plan, effective_schedule, fixed_removals, tokens_left
from ..settings import MergeSettings
from ..tokens import Tokens, initial_tokens, size_bias, unmerge
from .families import kind_of
from .kinds import Layout
from .refusals import collects


class Unmerge(nn.Module):
    """Returns to one token for each input token. A module, so that a hook on it sees the state (see `trace`)."""

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Tokens (B, T, C) and their state -> (B, P + N, C)."""
        return unmerge(x, tokens) if tokens.merged else x


def plainly(block: nn.Module, run: Callable[..., tuple[Tensor, Tokens]], *args: Any, **options: Any) -> Any:
    """Runs a block: calls its equations, and nothing around them."""
    return run(*args, **options)


class MergingBlocks(nn.Module):
    """A model's blocks with merging inside; replaces their container.

    Args:
        blocks: the blocks by name.
        layers: the blocks' merge layers.
        settings: how tokens are merged.
        plan: the number of patches to remove, or the share to keep, requested from each block.
        prefix: number of leading tokens that are protected.
        layout: returns rows and columns of the patches.
        container: class of the container that this module replaces.

    Attributes:
        plan: may be set to another plan at any time.
        merging: the merge layers, one per block. Each is called in every forward pass, also where r = 0.
        around: runs a block, since a block's own call, and with it hooks on the block, is not used: see `plainly`. What
            recomputes activations or splits parameters over processes sets another function.
    """

    def __init__(
        self,
        blocks: dict[str, nn.Module],
        layers: Iterable[MergeLayer],
        settings: MergeSettings,
        plan: Plan,
        prefix: int,
        layout: Layout,
        container: type[nn.Module],
    ) -> None:
        super().__init__()
        self.names = tuple(blocks)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.merging, self.unmerge = nn.ModuleList(layers), Unmerge()
        self.settings, self.merger, self.plan = settings, settings.merger(), plan
        self.prefix, self.layout, self.container = prefix, layout, container
        self.around: Callable[..., Any] = plainly
        self._warned = False

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        check_plan(plan)
        self._plan = list(plan)

    def learn(self, plan: Plan) -> None:
        """Sets a plan; methods that learn a number of tokens learn the plan's, from the beginning where it is new."""
        self.plan = plan
        grid, _ = self.layout()
        if self.merger.pooling is None or grid is None:
            return
        resize_layers(self.layers(), fixed_removals(self.schedule()), prod(grid))
        for name, layer in zip(self.names, self.layers(), strict=True):
            like_weights(layer, self.get_submodule(name))

    def layers(self) -> list[MergeLayer]:
        """The merge layers, one per block."""
        return [layer for layer in self.merging if isinstance(layer, MergeLayer)]

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Tokens (B, P + N, C) through all blocks -> (B, P + N, C)."""
        tokens, schedule = self.begin(x)
        for position, r in enumerate(schedule):
            x, tokens = self.run(position, x, tokens, r, **options)
        out: Tensor = self.unmerge(x, tokens)
        return out

    def begin(self, x: Tensor) -> tuple[Tokens, list[Removal]]:
        """The state of tokens x (B, P + N, C) before the first block, and the number of patches each block removes."""
        patches = int(x.shape[1]) - self.prefix  # while torch.jit traces, as fvcore does, a shape holds tensors
        if not (self.settings.solved or self._warned or torch.compiler.is_compiling()):
            self._warn_of_another_size(patches)
        return initial_tokens(x, self.grid(patches)), self.schedule(patches)

    def _warn_of_another_size(self, patches: int) -> None:
        """Warns, once, where a budget was solved for images of another size than these."""
        grid, _ = self.layout()
        if grid is not None and patches != prod(grid):
            self._warned = True
            warnings.warn(
                f"merge.{self.settings.target} was solved for {prod(grid)} patches, and these images have {patches}: "
                "another share of them is merged; build the model for this image size, or give merge.keep",
                stacklevel=3,
            )

    def run(self, position: int, x: Tensor, tokens: Tokens, r: Removal, **options: Any) -> tuple[Tensor, Tokens]:
        """Runs one block: with its own attention as long as nothing is merged, with its kind's equations afterwards."""
        name = self.names[position]
        block: nn.Module = getattr(self, name)  # faster than self[position], which splits a path
        kind = kind_of(block, f"block {name}")
        options = {key: value for key, value in options.items() if value is not None and value is not False}
        own = r == 0 and not tokens.merged
        # A loop, because torch.compile of torch 2.11 cannot subtract sets of keys.
        if not own and (unsupported := sorted(key for key in options if key not in kind.options)):
            raise UserError(f"{unsupported[0]}: does not follow merged tokens; omit it, or unwrap the model")
        bias = size_bias(tokens, proportional=self.settings.prop_attn)
        result: tuple[Tensor, Tokens] = self.around(
            block, partial(kind.run, block), x, tokens, r, self.merging[position], bias, own=own, **options
        )
        return result

    def grid(self, patches: int) -> Grid | None:
        """Rows and columns of so many patches; None where they are not known: images of any size, patch dropout."""
        grid, fixed = self.layout()
        return grid if fixed and grid is not None and prod(grid) == patches else None

    def schedule(self, patches: int | None = None) -> list[Removal]:
        """The number of patches that each block removes; Adaptive where it depends on the image.

        Args:
            patches: number of patches that enter the first block; None: as many as the model's image size has.

        Raises:
            UserError: a plan of another length, or a model without an image size and no number of patches.
        """
        if patches is None:
            grid, _ = self.layout()
            if grid is None:
                raise UserError("img_size = None: the number of patches depends on the image; use `trace`")
            patches = prod(grid)
        if len(self.plan) != len(self):
            raise UserError(f"plan has {len(self.plan)} entries; the model has {len(self)} blocks")
        return effective_schedule(self.plan, patches, self.merger, self.grid(patches))

    def tokens_per_block(self) -> list[int]:
        """The number of tokens that leave each block at the model's image size, prefix tokens included; empty where it
        depends on the image."""
        grid, _ = self.layout()
        return tokens_left(self.prefix + (0 if grid is None else prod(grid)), self.schedule())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | slice) -> nn.Module:
        """The block itself; for a slice, these blocks with their merging."""
        if isinstance(key, slice):
            blocks = {name: self.get_submodule(name) for name in self.names[key]}
            layers, plan = self.layers()[key], self.plan[key]
            part = MergingBlocks(blocks, layers, self.settings, plan, self.prefix, self.layout, self.container)
            part.training, part.around = self.training, self.around
            return part
        return self.get_submodule(self.names[key])

    def __iter__(self) -> Iterator[Step]:
        """For models that loop over their blocks: one step per block; the steps of one loop share the state."""
        run = Run()
        return iter([Step(self, position, run) for position in range(len(self))])


def like_weights(layer: MergeLayer, block: nn.Module) -> MergeLayer:
    """Moves a merge layer to the device and the precision of its block's weights."""
    weight = next(p for p in block.parameters() if p.is_floating_point())
    return layer.to(device=weight.device, dtype=weight.dtype)


def record(block: nn.Module, entered: Tensor, out: Tensor) -> None:
    """Tells a block's hooks that collect hidden states, as models of transformers set them, what went through it."""
    for hook in block._forward_hooks.values():
        if collects(hook):
            hook(block, (entered,), out)


@dataclass
class Run:
    """The state of one loop over the blocks.

    Attributes:
        schedule: the number of patches that each block removes.
        after: by block, its output tokens, their state, and what the step returned.
    """

    schedule: list[Removal] = field(default_factory=list)
    after: dict[int, tuple[Tensor, Tokens, Tensor]] = field(default_factory=dict)


class Step:
    """A block as a loop over the blocks sees it: its call takes and returns one token for each input token.

    All attributes are those of the block, so that `for block in model.blocks: block.attn ...` works as before.
    """

    def __init__(self, blocks: MergingBlocks, position: int, run: Run) -> None:
        vars(self).update(_blocks=blocks, _position=position, _run=run, _block=blocks[position])

    def __call__(self, x: Tensor, *given: Any, **options: Any) -> Tensor:
        names = kind_of(self._block, self._name).positional
        if len(given) > len(names) or (twice := options.keys() & set(names[: len(given)])):
            unexpected = given[len(names)] if len(given) > len(names) else sorted(twice)[0]
            raise TypeError(f"{self._name}: unexpected argument {unexpected!r}; it takes {', '.join(('x', *names))}")
        options.update(zip(names, given, strict=False))
        block, checkpointed = self._block, getattr(self._block, "gradient_checkpointing", False)
        if checkpointed and block.training and torch.is_grad_enabled():  # of transformers
            out: Tensor = block._gradient_checkpointing_func(partial(self._through, **options), x)
        else:
            out = self._through(x, **options)
        record(block, x, out)
        return out

    @property
    def _name(self) -> str:
        return f"block {self._blocks.names[self._position]}"

    def _through(self, x: Tensor, **options: Any) -> Tensor:
        """Runs the block on what the block before it put out, one token for each input token."""
        blocks, position, run, name = self._blocks, self._position, self._run, self._name
        if position == 0:
            tokens, run.schedule = blocks.begin(x)
        elif position - 1 not in run.after:
            raise UserError(f"{name}: merged tokens go through every block, in order")
        else:
            before, tokens, returned = run.after[position - 1]
            # A checkpointed block is run a second time, on the tensor that autograd saved for it.
            if tokens.merged and x is not returned and position not in run.after:
                raise UserError(
                    f"{name}: its input is not the output of the block before it, and merged tokens cannot follow"
                )
            if tokens.merged and x.requires_grad and not before.requires_grad:
                raise UserError(
                    f"{name}: gradient checkpointing with use_reentrant=True would lose merged tokens' "
                    "gradients; timm before 1.0.13 has no other kind"
                )
            x = before if tokens.merged else x
        x, tokens = blocks.run(position, x, tokens, run.schedule[position], **options)
        out: Tensor = blocks.unmerge(x, tokens)
        run.after.setdefault(position, (x, tokens, out))
        return out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_block" not in vars(self):  # looked up by copy and pickle
            raise AttributeError(name)
        return getattr(self._block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._block, name, value)
