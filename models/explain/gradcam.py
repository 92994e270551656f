"""Grad-CAM on feature maps and on tokens, merged or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..settings import UserError
from ..zoo import head_paths
from .recording import VisibleAttention, recording, score

AT = ("map", "tokens")


def gradcam(model: nn.Module, images: Tensor, target: Tensor, *, at: str | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): channels weighted by the mean gradient of the target's logit, ReLU of the sum.

    On tokens, the activations are the input of the last block's attention (its norm's output). A merged token's
    gradient is that of all of its patches together, so that the mean over patches needs no more than a sum; its value
    is shown at each of its patches.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.
        at: "map", the last feature map before a classifier; "tokens", those of the last block; None: the map of a
            model that has one, otherwise the tokens. Of several maps, such as Conformer's, the last that a classifier
            of its own reads.

    Returns:
        (B, rows, columns), not negative.

    Raises:
        UserError: the model has no such activations.
    """
    if at not in (None, *AT):
        raise UserError(f"at = {at!r}: unknown; known: {', '.join(AT)}")
    if at != "tokens":
        found = _on_map(model, images, target)
        if found is not None:
            return found
        if at == "map":
            raise UserError("at = map: the model has no feature map before its classifier; use tokens")
    return _on_tokens(model, images, target)


def _on_tokens(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    with torch.enable_grad(), recording(model) as blocks:
        logits = model(images)
        block = blocks[-1]
        (gradient,) = torch.autograd.grad(score(logits, target), block.source)
    patches = block.before.index.shape[1] - block.prefix
    weights = gradient[:, block.prefix :].sum(1, keepdim=True) / patches  # (B, 1, C)
    cam = (block.source.detach() * weights).sum(2, keepdim=True).clamp(min=0)
    return block.on_grid(block.patches(cam).squeeze(2))


def _on_map(model: nn.Module, images: Tensor, target: Tensor) -> Tensor | None:
    with torch.enable_grad(), _last_map(model) as found:
        logits = model(images)
        if not found:
            return None
        (feature_map,) = found
        (gradient,) = torch.autograd.grad(score(logits, target), feature_map)
    space = (1, 2) if _channels_last(model, feature_map) else (2, 3)
    channels = 3 if space == (1, 2) else 1
    return (feature_map.detach() * gradient.mean(space, keepdim=True)).sum(channels).clamp(min=0)


@contextmanager
def _last_map(model: nn.Module) -> Iterator[list[Tensor]]:
    """Holds the last feature map that a module returned before a classifier ran, once the model has run.

    A map that attention followed is not one of them: it is a ViT's patch embedding.
    """
    last: list[Tensor] = []
    found: list[Tensor] = []

    def seen(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[1:3]) > 1 and output.requires_grad:
            last[:] = [output]

    def classified(module: nn.Module, inputs: object) -> None:
        found[:] = last or found

    with ExitStack() as stack:
        stack.enter_context(VisibleAttention(lambda _: last.clear()))
        heads = _heads(model)
        inside = tuple(f"{head}." for head in heads)
        for name, module in model.named_modules():
            if name and name not in heads and not name.startswith(inside):
                stack.callback(module.register_forward_hook(seen).remove)
            if name in heads:
                stack.callback(module.register_forward_pre_hook(classified).remove)
        yield found


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that classify: as `build_model` names them, or as the model's library does."""
    named: tuple[str, ...] = getattr(model, "head_names", ()) or head_paths(model)
    return named


def _channels_last(model: nn.Module, feature_map: Tensor) -> bool:
    """Whether the channels are the last dimension, as in torchvision's Swin, by what the classifier reads."""
    inside = model.get_submodule(_heads(model)[-1]).modules()
    reads = next(module.weight.shape[1] for module in inside if isinstance(module, nn.Linear | nn.Conv2d))
    return feature_map.shape[3] == reads and feature_map.shape[1] != reads
