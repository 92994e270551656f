"""What merging is not put into, and why: each check names the part, and says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..settings import UserError

if TYPE_CHECKING:  # both are built on these checks
    from .families import Family, Kind
    from .settings import MergeSettings

PACKAGE = __package__.rpartition(".")[0]  # "models" in the working copy, "hybridmerge" as installed from a wheel

# Why not, by the beginning of the full name of a model's or a block's class.
REASONS = {
    "timm.models.swin": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "torchvision.models.swin": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "timm.models.maxxvit": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "torchvision.models.maxvit": "attends inside windows of the patch grid, and merged tokens have no place on it",
    "timm.models.convnext": "convolves: there are no tokens to merge",
    "torchvision.models.convnext": "convolves: there are no tokens to merge",
    "timm.models.resnet": "convolves: there are no tokens to merge",
    "torchvision.models.resnet": "convolves: there are no tokens to merge",
    "timm.models.eva": "rotates queries and keys by their place on the grid, and merged tokens have none",
    "timm.models.vision_transformer_relpos": "has a relative position bias that is not served",
    "timm.models.vision_transformer.ParallelScalingBlock": (
        "computes attention and MLP side by side, with no place for merging"
    ),
    "timm.models.vision_transformer.DiffParallelScalingBlock": (
        "computes attention and MLP side by side, with no place for merging"
    ),
    "timm.models.vision_transformer.ParallelThingsBlock": (
        "has several attentions, and merging knows blocks that have one"
    ),
    f"{PACKAGE}.vit.": "merges by itself, see its option `merge`",
    f"{PACKAGE}.hybrid.": "merges by itself, see its option `merge`",
    "torch.nn.parallel": "holds the model already: wrap the model first",
    "torch._dynamo": "holds the model already: wrap the model first",
}


def why_not(cls: type[nn.Module], otherwise: str) -> str:
    """The reason for a class, or for one that it is derived from, of models or blocks that merging does not serve."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    return next((why for start, why in REASONS.items() if any(name.startswith(start) for name in names)), otherwise)


def check_container(container: nn.Module, path: str) -> None:
    """Raises UserError where a container of blocks does more than hold them: merging stands in for it."""
    if type(container) not in (nn.Sequential, nn.ModuleList):
        raise UserError(
            f"{path} is a {type(container).__name__}, which merging does not know; it stands in for a "
            "Sequential or a ModuleList"
        )
    check_hooks(container, path)


def check_block(block: nn.Module, name: str, kind: Kind) -> None:
    """Raises UserError where a block would do something that its kind's equations do not say."""
    attention = f"{name}.{kind.attention[0]}"
    for module, path, known in (
        (block, name, kind.parts),
        (getattr(block, kind.attention[0]), attention, kind.attention_parts),
    ):
        parts = {part for part, _ in (*module.named_children(), *module.named_parameters(recurse=False))}
        if unknown := sorted(parts - known):
            raise UserError(f"{path} has {unknown[0]}, which merging does not know")
        check_hooks(module, path)


def check_hooks(module: nn.Module, path: str) -> None:
    """Raises UserError where a module has hooks, or a forward that its class has not."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if hooks or module._backward_pre_hooks or "forward" in vars(module):
        raise UserError(
            f"{path} has hooks or a forward of its own, which would not run; take them off, or hook its parts"
        )


def check_by_weight(attn: nn.Module, path: str, kind: Kind) -> None:
    """Raises UserError where an attention uses a projection's weight and not its forward, and that forward is no plain
    linear layer's: a LoRA layer there would train nothing and change nothing, in the plain model as in the wrapped."""
    part = kind.by_weight(attn)
    layer = getattr(attn, part) if part else None
    if layer is None or (type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)):
        return
    found = f"{type(layer).__module__}.{type(layer).__qualname__}"
    raise UserError(
        f"{path}.{part} is a {found}, which has no effect there: attention uses its weight alone; LoRA can "
        f"go into {', '.join(kind.adaptable)}"
    )


def check_needs(settings: MergeSettings, vit: nn.Module, family: Family) -> None:
    """Raises UserError where the method needs what the model does not have."""
    merger, cls, method = settings.merger(), type(vit).__name__, f"merge.method = {settings.method!r}"
    if merger.attention == "class" and not family.class_token(vit):
        raise UserError(f"{method}: it goes by the class token's attention, and this {cls} has no class token")
    if merger.shrink is None:
        return
    if not family.layout(vit)()[1]:
        raise UserError(
            f"{method}: it keeps a grid, and this {cls} takes images of any size without saying which grid they make"
        )
    if rate := getattr(getattr(vit, "patch_drop", None), "prob", 0.0):
        raise UserError(
            f"{method}: it keeps a grid, and patch_drop_rate = {rate} leaves none in training; build the "
            f"{cls} with patch_drop_rate=0, or take another method"
        )
