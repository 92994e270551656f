"""Merging for ViTs that are not ours: `wrap` puts it in, `unwrap` takes it out.

    model = timm.create_model("deit3_base_patch16_224", pretrained=True)
    wrap(model, method="tome", r=13)

Only the container of the blocks is replaced: the blocks are the very same modules under the same names, and between
them tokens and their state are local values. What leaves the container is as long as what entered: each input token's
place holds the token that it became part of. So whatever the model does next is right without knowing of merging: a
mean over patches weighs tokens by size, a pooling attention is proportional, and a map is a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from ..settings import UserError, check
from .contract import Grid
from .families import Layout, attention_width, family_of, kind_of
from .layer import MergeLayer
from .refusals import check_block, check_container, check_hooks, check_needs
from .schedule import Plan, check_plan, effective_schedule
from .settings import MergeSettings
from .tokens import Tokens, initial_tokens, size_bias, unmerge


class Unmerge(nn.Module):
    """The way back to one token for each input token. A module, so that a hook on it sees the state (`trace`)."""

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Tokens (B, T, C) and their state -> (B, P + N, C)."""
        return unmerge(x, tokens) if tokens.merged else x


class MergingBlocks(nn.Module):
    """A model's blocks with merging inside, in place of their container.

    Args:
        blocks: the blocks by name.
        layers: each block's merging.
        settings: how tokens are merged.
        plan: what each block is asked for.
        prefix: how many leading tokens are protected.
        layout: rows and columns of the patches.
        container: class of the container that this stands in for.

    Attributes:
        plan: what each block is asked for. Another one may be set at any time.
    """

    def __init__(
        self,
        blocks: dict[str, nn.Module],
        layers: list[MergeLayer],
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

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        check_plan(plan)
        self._plan = list(plan)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """Tokens (B, P + N, C) through all blocks -> (B, P + N, C)."""
        tokens, schedule = self.begin(x)
        for position, r in enumerate(schedule):
            x, tokens = self.run(position, x, tokens, r, **given)
        return self.unmerge(x, tokens)

    def begin(self, x: Tensor) -> tuple[Tokens, list[int]]:
        """The state of tokens x (B, P + N, C) before the first block, and what each block removes of them."""
        patches = x.shape[1] - self.prefix
        return initial_tokens(x, self.grid(patches)), self.schedule(patches)

    def run(self, position: int, x: Tensor, tokens: Tokens, r: int, **given: Any) -> tuple[Tensor, Tokens]:
        """One block: its own forward as long as nothing is merged, its kind's equations from then on."""
        block = self[position]
        if r == 0 and not tokens.merged:
            return block(x, **given), tokens
        kind = kind_of(block, f"block {self.names[position]}")
        given = {key: value for key, value in given.items() if value is not None and value is not False}
        if strange := sorted(given.keys() - kind.takes):
            raise UserError(f"{strange[0]}: does not follow merged tokens; leave it out, or unwrap the model")
        bias = size_bias(tokens) if self.settings.prop_attn else None
        return kind.run(block, x, tokens, r, self.merging[position], bias, **given)

    def grid(self, patches: int) -> Grid | None:
        """Rows and columns of so many patches; None where they cannot be known: images of any size, patch dropout."""
        grid, fixed = self.layout()
        return grid if fixed and prod(grid) == patches else None

    def schedule(self, patches: int | None = None) -> list[int]:
        """Patches that each block really removes, of so many; None: of as many as the model's image size makes.

        Raises:
            UserError: a plan of another length, or a model without an image size and no number of patches.
        """
        if patches is None:
            grid, _ = self.layout()
            if grid is None:
                raise UserError("img_size = None: how many patches there are is known with an image; `trace` says")
            patches = prod(grid)
        if len(self.plan) != len(self):
            raise UserError(f"plan has {len(self.plan)} entries; the model has {len(self)} blocks")
        return effective_schedule(self.plan, patches, self.merger, self.grid(patches))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | slice) -> nn.Module:
        """The block itself; for a slice, those blocks with their merging."""
        if isinstance(key, slice):
            blocks = {name: self._modules[name] for name in self.names[key]}
            layers, plan = list(self.merging[key]), self.plan[key]
            part = MergingBlocks(blocks, layers, self.settings, plan, self.prefix, self.layout, self.container)
            part.training = self.training
            return part
        return self._modules[self.names[key]]

    def __iter__(self) -> Iterator[Step]:
        """For models that loop over their blocks: each block with its merging, the state shared by this one loop."""
        run = Run()
        return iter([Step(self, position, run) for position in range(len(self))])


@dataclass
class Run:
    """One loop over the blocks: what each removes, and after each its tokens, their state, and what it returned."""

    schedule: list[int] = field(default_factory=list)
    after: dict[int, tuple[Tensor, Tokens, Tensor]] = field(default_factory=dict)


class Step:
    """A block as a loop over the blocks sees it: called, it takes and returns one token for each input token.

    Everything else is the block's own: `for block in model.blocks: block.attn ...` goes on as before.
    """

    def __init__(self, blocks: MergingBlocks, position: int, run: Run) -> None:
        vars(self).update(_blocks=blocks, _position=position, _run=run, _block=blocks[position])

    def __call__(self, x: Tensor, **given: Any) -> Tensor:
        blocks, position, run = self._blocks, self._position, self._run
        name = f"block {blocks.names[position]}"
        if position == 0:
            tokens, run.schedule = blocks.begin(x)
        elif position - 1 not in run.after:
            raise UserError(f"{name}: merged tokens go through every block, in order")
        else:
            before, tokens, returned = run.after[position - 1]
            # A checkpointed block is run a second time, on what autograd saved for it.
            if tokens.merged and x is not returned and position not in run.after:
                raise UserError(
                    f"{name}: its input is not the output of the block before it, and merged tokens cannot follow"
                )
            if tokens.merged and x.requires_grad and not before.requires_grad:
                raise UserError(
                    f"{name}: gradient checkpointing with use_reentrant=True would lose merged tokens' "
                    "gradients; timm before 1.0.13 knows no other"
                )
            x = before if tokens.merged else x
        x, tokens = blocks.run(position, x, tokens, run.schedule[position], **given)
        out = blocks.unmerge(x, tokens)
        run.after.setdefault(position, (x, tokens, out))
        return out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_block" not in vars(self):  # what copy and pickle ask of a step still empty
            raise AttributeError(name)
        return getattr(self._block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._block, name, value)


def wrap(model: nn.Module, method: str = "tome", r: Any = 0, **others: Any) -> nn.Module:
    """Puts token merging into a timm VisionTransformer or Beit, or a torchvision VisionTransformer, in place.

    Parameters and their names stay as they are; a learned metric adds its heads, `<blocks>.merging.<i>.head`. Blocks
    run their own forward until something is merged: at r=0 the model gives what it gave, to the bit. Wrapping a
    wrapped model replaces its settings, and keeps learned heads if the new settings have a learned metric too; with any
    other they are gone. LoRA goes in first: peft freezes all that it finds, heads that are there already too.

    Relative position biases (Beit) between merged tokens are means: `between_tokens` in families.py.
    Hooks on a block, or on its attention, do not run from the first merge on; those on their parts do. A patch that
    `topk` pruned is, after the last block, the kept patch that is most similar to it.

    Args:
        model: the model, or peft's model around it.
        method: a key of MERGERS.
        r: tokens that each block removes: n, a list, {"first": n, "last": n}; of {"train": [a, b]} the middle.
        others: other keys of the `merge:` section: keep, metric, prop_attn, and a method's own options.

    Returns:
        The same model.

    Raises:
        UserError: settings or a model that cannot be, with the reason.
    """
    settings = check(MergeSettings, {"method": method, "r": r, **others}, where="merge")
    vit = _inside(model)
    family = family_of(vit)
    old = vit.get_submodule(family.blocks)
    wrapped = isinstance(old, MergingBlocks)
    (check_hooks if wrapped else check_container)(old, family.blocks)
    # Not named_children(): that leaves out a block that stands there a second time.
    blocks = {name: block for name, block in old._modules.items() if not wrapped or name in old.names}
    for name, block in blocks.items():
        path = f"{family.blocks}.{name}"
        check_block(block, path, kind_of(block, path))
    check_needs(settings, vit, family)
    merging = _layers(settings, family.prefix(vit), family.width(vit), list(blocks.values()))
    new = MergingBlocks(
        blocks,
        merging,
        settings,
        _plan(settings, len(blocks)),
        family.prefix(vit),
        family.layout(vit),
        old.container if wrapped else type(old),
    )
    if wrapped:
        for layer, before in zip(new.merging, old.merging, strict=True):
            layer.head = before.head if layer.head is not None and before.head is not None else layer.head
    if new.layout()[0] is not None:
        new.schedule()
    new.merging.train(old.training)
    _replace(vit, family.blocks, new)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Takes merging out again, in place: the blocks go back into a container of the class that they came in.

    Raises:
        UserError: a model that is not wrapped, or whose container was given hooks since.
    """
    vit = _inside(model)
    merging = blocks_of(model)
    check_hooks(merging, family_of(vit).blocks)
    container = merging.container()
    for name in merging.names:
        container.add_module(name, merging.get_submodule(name))
    _replace(vit, family_of(vit).blocks, container)
    return model


def blocks_of(model: nn.Module) -> MergingBlocks:
    """The blocks of a wrapped model: `blocks_of(model).plan = [8] * 12` gives each another number to remove.

    Raises:
        UserError: a model that is not wrapped.
    """
    vit = _inside(model)
    blocks = vit.get_submodule(family_of(vit).blocks)
    if not isinstance(blocks, MergingBlocks):
        raise UserError(f"this {type(vit).__name__} is not wrapped; {__package__}.wrap does that")
    return blocks


def schedule_of(model: nn.Module) -> list[int]:
    """Patches that each block of a wrapped model really removes, at the model's image size."""
    return blocks_of(model).schedule()


def trace(model: nn.Module, *inputs: Any) -> tuple[Any, Tokens]:
    """Runs a wrapped model and says what became of its tokens.

    Returns:
        What the model returns, and the state after the last block: `index` says which patches became one.
    """
    seen: list[Tokens] = []
    hook = blocks_of(model).unmerge.register_forward_hook(lambda module, given, output: seen.append(given[1]))
    try:
        output = model(*inputs)
    finally:
        hook.remove()
    return output, seen[-1]


def _inside(model: nn.Module) -> nn.Module:
    """The model inside peft's, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plan(settings: MergeSettings, depth: int) -> Plan:
    if not settings.solved:
        key = "target_ratio" if settings.target_gmacs is None else "target_gmacs"
        raise UserError(f"merge.{key} = {getattr(settings, key)}: wrap solves no budget; say it by r or keep")
    try:
        return settings.plan(depth)
    except ValueError as error:
        raise UserError(str(error)) from None


def _layers(settings: MergeSettings, prefix: int, width: int, blocks: list[nn.Module]) -> list[MergeLayer]:
    merger, metric, layers = settings.merger(), settings.compared_by(), []
    for i, block in enumerate(blocks):
        layer = MergeLayer(merger, metric, prefix, i / len(blocks), width, attention_width(block))
        weight = next(p for p in block.parameters() if p.is_floating_point())
        layers.append(layer.to(device=weight.device, dtype=weight.dtype))
    return layers


def _replace(model: nn.Module, path: str, container: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    container.training = model.get_submodule(path).training
    setattr(model.get_submodule(parent), name, container)
