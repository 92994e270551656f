"""LoRA (Hu et al., 2022) through peft: adapters of low rank beside the weights of linear layers, convolutions and
attention."""

from __future__ import annotations

import re

import torch
from timm.layers import Conv2dSame
from torch import nn

from .settings import UserError, nearest

# Attention's projections, by the names that timm and torchvision give them.
ATTENTION = ("qkv", "proj", "q_proj", "k_proj", "v_proj", "query", "key", "value", "self_attention")


def add_lora(model: nn.Module, rank: int, alpha: float, dropout: float, targets: list[str] | None) -> None:
    """Adds adapters to the target modules, in place, and freezes all other parameters.

    Args:
        model: the model. The modules in its `head_names` get no adapters.
        rank, alpha: rank of the adapters; their scale is alpha / rank.
        dropout: dropout before the adapters.
        targets: see `lora_targets`.

    Raises:
        UserError: peft is not installed, the targets match nothing, or one is a convolution whose adapter could not be
            added to its weights (see `_unmergeable`).
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("finetune.mode = 'lora': needs peft; pip install peft") from None
    names = lora_targets(model, targets)
    for name in names:  # checked before training, since the result could not be used
        if reason := _unmergeable(model.get_submodule(name)):
            said = f"finetune.targets = {targets}: {name} {reason}"
            raise UserError(f"{said}, so that no adapter can be added to its weights; name others")
    # In torchvision's attention the projection of queries, keys and values is adapted as a parameter: peft's layer for
    # the module adds its adapter to the frozen weights in each forward and subtracts it again, with rounding errors.
    whole = [name for name in names if isinstance(model.get_submodule(name), nn.MultiheadAttention)]
    if whole and dropout:
        raise UserError(f"finetune.dropout = {dropout}: not for adapters of {whole[0]}; use 0, or other targets")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[name for name in names if name not in whole],
        target_parameters=[f"{name}.in_proj_weight" for name in whole] or None,
    )
    inject_adapter_in_model(config, model)


def lora_targets(model: nn.Module, asked: list[str] | None) -> list[str]:
    """Returns the full names of the modules that get adapters.

    Args:
        model: the model. It is run on one image to find out which modules it calls.
        asked: names, or last parts of names; None: the projections of attention.

    Raises:
        UserError: no module with such a name can have an adapter.
    """
    kinds, kind = nn.Linear | nn.Conv2d | nn.MultiheadAttention, type(model).__name__
    heads = tuple(f"{head}." for head in model.head_names)
    able = [n for n, m in model.named_modules() if isinstance(m, kinds) and not f"{n}.".startswith(heads)]
    called = _called(model, able)
    deaf = [name for name in able if name not in called]
    able = [name for name in able if name in called]
    last = sorted({name.rpartition(".")[2] for name in able})
    if asked is None:
        found = [name for name in able if name.rpartition(".")[2] in ATTENTION and re.search("attn|attention", name)]
        if found:
            return found
        reason = "uses its attention's weights without calling it" if deaf else "has no attention to adapt"
        raise UserError(f"finetune.targets: {kind} {reason}; name other modules, such as {able[-1:]}")
    for target in asked:
        if not _matching(able, target):
            if _matching(deaf, target):
                said = f"finetune.targets = {target!r}: {kind} uses its weight without calling it"
                raise UserError(f"{said}, so that an adapter would do nothing; use {' or '.join(last)}")
            raise UserError(f"finetune.targets = {target!r}: matches no linear or attention; {nearest(target, last)}")
    return [name for name in able if any(_matching([name], target) for target in asked)]


def merge_lora(model: nn.Module) -> int:
    """Adds every adapter to the weights that it adapts and removes it. The logits stay the same.

    Returns:
        The number of adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    count = 0
    # One by one, outer ones first: in torchvision's attention the output projection's adapter is inside another one.
    while found := next(((n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)), None):
        name, layer = found
        if not layer.merged:
            layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
        count += 1
    return count


def _unmergeable(module: nn.Module) -> str:
    """Returns why an adapter cannot be added to a module's weights, as the end of a sentence; "" if it can.

    The adapter of a convolution is a plain convolution: it ignores groups and dilation, pads with zeros, and does not
    take part in standardising the weights.
    """
    if not isinstance(module, nn.Conv2d):
        return ""
    if module.groups > 1:
        return f"is a convolution in {module.groups} groups"
    if module.dilation != (1, 1):
        return "is a dilated convolution"
    if module.padding_mode != "zeros":
        return f"is a convolution with padding by {module.padding_mode}"
    return "" if type(module) in (nn.Conv2d, Conv2dSame) else f"is a {type(module).__name__}"


def _matching(names: list[str], target: str) -> list[str]:
    return [name for name in names if name == target or name.endswith(f".{target}")]


@torch.no_grad()
def _called(model: nn.Module, names: list[str]) -> set[str]:
    """Returns which of these modules the model calls.

    It uses only the weights of the others, so that an adapter would have no effect: Beit's qkv, the projections of
    torchvision's attention, and that attention itself in a wrapped model.
    """
    called: set[str] = set()
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, given, output, name=name: called.add(name))
        for name in names
    ]
    training, weight = model.training, next(model.parameters())
    try:
        model.eval()(weight.new_zeros(1, model.in_chans, model.img_size, model.img_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return called
