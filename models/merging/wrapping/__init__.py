"""Merging for ViTs of other libraries: `wrap` adds it, `unwrap` removes it.

    model = timm.create_model("deit3_base_patch16_224", pretrained=True)
    wrap(model, method="tome", r=13)

Only the container of the blocks is replaced: the blocks are the same modules under the same names, and between them
tokens and their state are local values. The output of the container is as long as its input: each input token's place
holds the token that it became part of. So whatever the model does next works without knowledge of merging: a mean over
patches weights tokens by size, a pooling attention is proportional, and a map is a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ...settings import UserError, check
from ..budget import Cost, CountError
from ..contract import Removal
from ..layer import MergeLayer
from ..schedule import Plan
from ..settings import MergeSettings
from ..tokens import Tokens
from .blocks import MergingBlocks, like_weights
from .budget import cost_of_images, meet_budget, sizes
from .families import FAMILIES, KINDS, attention_width, family_of, from_transformers, kind_of, read_transformers
from .kinds import Family, Kind
from .refusals import check_block, check_container, check_hooks, check_needs

__all__ = [
    "FAMILIES",
    "KINDS",
    "Family",
    "Kind",
    "MergingBlocks",
    "blocks_of",
    "cost_per_image",
    "image_shape",
    "merging_in",
    "schedule_of",
    "trace",
    "unwrap",
    "wrap",
]


def wrap(model: nn.Module, method: str = "tome", r: Any = 0, **others: Any) -> nn.Module:
    """Adds token merging, in place, to timm's VisionTransformer, Beit or Eva, torchvision's VisionTransformer, or a
    vision model of Hugging Face's transformers.

    Parameters and their names stay as they are; a learned metric adds its heads, `<blocks>.merging.<i>.head`, and a
    method that learns what its tokens are made of adds that, `<blocks>.merging.<i>.pooling`: such a model has to be
    trained before its answers mean anything. Blocks call their own attention until something is merged: with r=0 the
    output of the model is the same to the last bit.
    Wrapping a wrapped model replaces its settings; learned heads are kept if the new settings have a learned metric
    too, and learned tokens where the new settings have the same method and leave as many; otherwise they are removed.
    Add LoRA before wrapping: peft freezes all parameters that it finds, learned ones included.

    Relative position biases (Beit) between merged tokens are means, see `between_tokens` in equations.py, and so are
    rotations by position (Eva), see rotary.py.
    A hook on a block's merge layer, `<blocks>.merging[i]`, runs in every forward pass, with r=0 too; so do hooks on the
    block's parts. Hooks on a block itself do not run, and hooks on its attention only until something is merged. A
    patch that `topk` pruned becomes, after the last block, the kept patch that is most similar to it.

    Args:
        model: the model, or peft's model around it.
        method: a key of MERGERS.
        r: tokens that each block removes: n, a list, {"first": n, "last": n}; of {"train": [a, b]} the middle.
        others: other keys of the `merge:` section. In place of r: `keep`; `threshold`, with which the number that is
            removed depends on the image; `target_gmacs` (GMACs of one image) or
            `target_ratio` (MACs without merging divided by MACs with it), which are met within 0.5 %; or `target_ms`
            (milliseconds of a forward pass of `target_batch` images, 1 if not given), which is measured on the
            model's device, with the precision of its weights. Besides: first_block, blocks, metric, prop_attn, and a
            method's own options.

    Returns:
        The same model.

    Raises:
        UserError: invalid settings, a model that is not supported, or a budget that cannot be met, with the reason.
            The model is then as it was.
    """
    settings = check(MergeSettings, {"method": method, "r": r, **others}, where="merge")
    vit = base_model(model)
    family = family_of(vit)
    old, new = vit.get_submodule(family.blocks), _merging_blocks(vit, family, settings)
    _replace(vit, family.blocks, new)
    if not settings.solved:
        try:
            meet_budget(vit, family, new)
        except BaseException:
            _replace(vit, family.blocks, old)
            raise
    return model


@contextmanager
def merging_in(model: nn.Module, settings: MergeSettings) -> Iterator[MergingBlocks]:
    """In this context a model merges by some settings, and afterwards as before, or not at all if it did not.

    Args:
        model: as for `wrap`.
        settings: without a budget.

    Returns:
        Its blocks, whose `plan` may be changed.

    Raises:
        UserError: as `wrap`.
    """
    vit = base_model(model)
    family = family_of(vit)
    old, new = vit.get_submodule(family.blocks), _merging_blocks(vit, family, settings)
    _replace(vit, family.blocks, new)
    try:
        yield new
    finally:
        _replace(vit, family.blocks, old)


def unwrap(model: nn.Module) -> nn.Module:
    """Removes merging, in place: the blocks go back into a container of their original class.

    Raises:
        UserError: a model that is not wrapped, or whose container has hooks.
    """
    vit = base_model(model)
    merging = blocks_of(model)
    check_hooks(merging, family_of(vit).blocks)
    container = merging.container()
    for name in merging.names:
        container.add_module(name, merging.get_submodule(name))
    _replace(vit, family_of(vit).blocks, container)
    return model


def blocks_of(model: nn.Module) -> MergingBlocks:
    """The blocks of a wrapped model: `blocks_of(model).plan = [8] * 12` changes the numbers of patches to remove.

    Raises:
        UserError: a model that is not wrapped.
    """
    vit = base_model(model)
    family = family_of(vit)
    blocks = vit.get_submodule(family.blocks)
    if not isinstance(blocks, MergingBlocks):
        raise UserError(f"this {type(vit).__name__} is not wrapped; {__package__.rpartition('.')[0]}.wrap does that")
    return blocks


def schedule_of(model: nn.Module) -> list[Removal]:
    """The number of patches that each block of a wrapped model removes, at the model's image size; Adaptive where it
    depends on the image."""
    return blocks_of(model).schedule()


def image_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that a wrapped model was built for; None where they are not known."""
    vit = base_model(model)
    try:
        return sizes(vit, family_of(vit), blocks_of(model))[1]
    except CountError:
        return None


def cost_per_image(model: nn.Module, whole: nn.Module | None = None, depth: int | None = None) -> Cost:
    """The MACs of one image through a wrapped model, as a function of what each block removes of it.

    Args:
        model: the wrapped model.
        whole: what the image goes through, of which the wrapped model is a part; None: the wrapped model alone.
        depth: how many of the model's blocks it goes through; None: all.

    Raises:
        UserError: a model that is not wrapped.
        CountError: the model cannot be counted.
    """
    vit = base_model(model)
    return cost_of_images(vit, family_of(vit), blocks_of(model), whole, depth)


def trace(model: nn.Module, *inputs: Any) -> tuple[Any, Tokens]:
    """Runs a wrapped model and returns which tokens were merged.

    Returns:
        The output of the model, and the state after the last block: `index` maps input tokens to tokens.
    """
    seen: list[Tokens] = []
    hook = blocks_of(model).unmerge.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    try:
        output = model(*inputs)
    finally:
        hook.remove()
    return output, seen[-1]


def _merging_blocks(vit: nn.Module, family: Family, settings: MergeSettings) -> MergingBlocks:
    """The blocks of a model with merging inside; the model itself is not changed."""
    old = vit.get_submodule(family.blocks)
    wrapped = old if isinstance(old, MergingBlocks) else None
    if wrapped is None:
        check_container(old, family.blocks)
    else:
        check_hooks(old, family.blocks)
    # Not named_children(), which omits the second occurrence of a block.
    names = list(old._modules) if wrapped is None else wrapped.names
    blocks = {name: old.get_submodule(name) for name in names}
    for name, block in blocks.items():
        path = f"{family.blocks}.{name}"
        check_block(block, path, kind_of(block, path))
    check_needs(settings.merger(), settings.method, vit, family)
    merging = _layers(settings, family.prefix(vit), family.width(vit), list(blocks.values()))
    plan, container = _plan(settings, len(blocks)), type(old) if wrapped is None else wrapped.container
    new = MergingBlocks(blocks, merging, settings, plan, family.prefix(vit), family.layout(vit), container)
    if wrapped is not None and settings.compared_by() == wrapped.settings.compared_by() == "learned":
        for layer, before in zip(new.merging, wrapped.merging, strict=True):
            layer.head = before.head
    if wrapped is not None and settings.method == wrapped.settings.method:
        for layer, before in zip(new.merging, wrapped.merging, strict=True):
            layer.pooling, layer.leaves = before.pooling, before.leaves
    if settings.solved:
        new.learn(plan)
    if new.layout()[0] is not None:
        new.schedule()
    new.merging.train(old.training)
    return new


@runtime_checkable
class HasBaseModel(Protocol):
    """peft's model around the model that it adapts."""

    def get_base_model(self) -> nn.Module:
        """The adapted model."""


def without_peft(model: nn.Module) -> nn.Module:
    """The model inside peft's model, with its adapters; the model itself, where there is no peft."""
    return model.get_base_model() if isinstance(model, HasBaseModel) else model


def base_model(model: nn.Module) -> nn.Module:
    """The ViT that is wrapped: the model itself, the one inside peft's model, or the one vision tower that a model of
    transformers holds."""
    model = without_peft(model)
    if type(model) in FAMILIES or not from_transformers(type(model)):
        return model
    read_transformers()
    towers = [part for part in model.modules() if type(part) in FAMILIES]
    if len(towers) > 1:
        raise UserError(f"{type(model).__name__} holds {len(towers)} vision towers that merge; wrap one of them")
    return towers[0] if towers else model


def _plan(settings: MergeSettings, depth: int) -> Plan:
    """What the settings request from each block; nothing yet where a budget has to be solved."""
    try:
        return settings.plan(depth) if settings.solved else [0] * depth
    except ValueError as error:
        raise UserError(str(error)) from None


def _layers(settings: MergeSettings, prefix: int, width: int, blocks: list[nn.Module]) -> list[MergeLayer]:
    merger, metric, layers = settings.merger(), settings.compared_by(), []
    for i, block in enumerate(blocks):
        layer = MergeLayer(merger, metric, prefix, i / len(blocks), width, attention_width(block))
        layers.append(like_weights(layer, block))
    return layers


def _replace(model: nn.Module, path: str, container: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    container.training = model.get_submodule(path).training
    setattr(model.get_submodule(parent), name, container)
