"""Models and blocks that `wrap` does not support, and why. Each check names the part and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...settings import UserError
from ..contract import Merger
from .kinds import Family, Kind

PACKAGE = __package__.split(".")[0]  # "models" in the working copy, "hybridmerge" as installed from a wheel

WINDOWS = "attends inside windows, where merging does not pay: docs/results/swin"

# The reason, by the start of the full name of a model's or block's class.
REASONS = {
    "timm.models.swin": WINDOWS,
    "torchvision.models.swin": WINDOWS,
    "transformers.models.swin": WINDOWS,
    "timm.models.maxxvit": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "torchvision.models.maxvit": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "timm.models.convnext": "convolves: there are no tokens to merge",
    "torchvision.models.convnext": "convolves: there are no tokens to merge",
    "timm.models.resnet": "convolves: there are no tokens to merge",
    "torchvision.models.resnet": "convolves: there are no tokens to merge",
    "timm.models.vision_transformer_relpos": "has a relative position bias that is not supported",
    "timm.models.vision_transformer.ParallelScalingBlock": (
        "computes attention and MLP side by side, with no place for merging"
    ),
    "timm.models.vision_transformer.DiffParallelScalingBlock": (
        "computes attention and MLP side by side, with no place for merging"
    ),
    "timm.models.vision_transformer.ParallelThingsBlock": ("has several attentions, and wrap supports blocks with one"),
    f"{PACKAGE}.vit.": "merges by itself, see its option `merge`",
    f"{PACKAGE}.hybrid.": "merges by itself, see its option `merge`",
    f"{PACKAGE}.conformer.": "merges by itself, see its option `merge`",
    "torch.distributed.fsdp": "is sharded by itself: wrap first, then shard the whole model",
    "torch.nn.parallel": "holds the model already: wrap the model first",
    "torch._dynamo": "holds the model already: wrap the model first",
}


def why_not(cls: type[nn.Module], otherwise: str) -> str:
    """Returns the reason why a class, or one of its base classes, is not supported; `otherwise` if none is listed."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    return next((why for start, why in REASONS.items() if any(name.startswith(start) for name in names)), otherwise)


def check_container(container: nn.Module, path: str) -> None:
    """Raises UserError if a container of blocks does more than hold them, since wrap replaces it."""
    if type(container) not in (nn.Sequential, nn.ModuleList):
        raise UserError(
            f"{path} is a {type(container).__name__}, which wrap does not support; it replaces a "
            "Sequential or a ModuleList"
        )
    check_hooks(container, path)


def check_block(block: nn.Module, name: str, kind: Kind) -> None:
    """Raises UserError if a block has parts or hooks that its kind's equations do not include."""
    attention = f"{name}.{kind.attention[0]}"
    for module, path, supported in (
        (block, name, kind.parts),
        (getattr(block, kind.attention[0]), attention, kind.attention_parts),
    ):
        parts = {part for part, _ in (*module.named_children(), *module.named_parameters(recurse=False))}
        if unknown := sorted(parts - supported):
            raise UserError(f"{path} has {unknown[0]}, which wrap does not support")
        check_hooks(module, path)


def check_hooks(module: nn.Module, path: str) -> None:
    """Raises UserError if a module has hooks, or a forward that is not its class's."""
    forward = [hook for hook in module._forward_hooks.values() if not collects(hook)]
    hooks = forward or module._forward_pre_hooks or module._backward_hooks
    if hooks or module._backward_pre_hooks or "forward" in vars(module):
        raise UserError(
            f"{path} has hooks or a forward of its own, which would not run; remove them, or hook its parts"
        )


def collects(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one by which a model of transformers collects hidden states; see `record` in blocks.py."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def check_by_weight(attn: nn.Module, path: str, kind: Kind) -> None:
    """Raises UserError if an attention uses only the weight of a projection that is not a plain linear layer.

    A LoRA layer there would train nothing and change nothing, with and without `wrap`.
    """
    part = kind.by_weight(attn)
    layer = getattr(attn, part) if part else None
    if layer is None or (type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)):
        return
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    raise UserError(
        f"{path}.{part} is a {name}, which has no effect there: attention uses its weight alone; LoRA can "
        f"go into {', '.join(kind.adaptable)}"
    )


def check_needs(merger: Merger, name: str, model: nn.Module, family: Family) -> None:
    """Raises UserError if a method, the entry `name` of MERGERS, needs something that the model does not have."""
    cls, method = type(model).__name__, f"merge.method = {name!r}"
    if merger.attends == "class" and not family.class_token(model):
        raise UserError(
            f"{method}: it uses the class token's attention, and this {cls} has no class token; choose another method, "
            "or other options of it"
        )
    if merger.pooling is not None and family.layout(model)()[0] is None:
        learns = "a number of tokens" if merger.sized else "where patches are removed"
        raise UserError(f"{method}: it learns {learns}, and this {cls} was built for no image size; build it for one")
    if merger.shrink is None and not merger.position:
        return
    need = "it uses the positions of patches" if merger.shrink is None else "it keeps a grid"
    if not family.layout(model)()[1]:
        raise UserError(f"{method}: {need}, and this {cls} takes images of any size, so that the grid is not known")
    if rate := getattr(getattr(model, "patch_drop", None), "prob", 0.0):
        raise UserError(
            f"{method}: {need}, and patch_drop_rate = {rate} leaves no grid in training; build the "
            f"{cls} with patch_drop_rate=0, or choose another method"
        )
