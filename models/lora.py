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
    """Puts adapters beside the targets' weights, in place, and freezes all else.

    Args:
        model: its `head_names` get none.
        rank, alpha: of the adapters, whose scale is alpha / rank.
        dropout: before them.
        targets: see `lora_targets`.

    Raises:
        UserError: peft is not installed, the targets match nothing, or one is a convolution that `_unmergeable` names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("finetune.mode = 'lora': needs peft; pip install peft") from None
    names = lora_targets(model, targets)
    for name in names:  # before the training, after which nobody could use what it learnt
        if reason := _unmergeable(model.get_submodule(name)):
            said = f"finetune.targets = {targets}: {name} {reason}"
            raise UserError(f"{said}, so that no adapter can be added to its weights; name others")
    # Of torchvision's attention the projection of queries, keys and values is adapted, as a parameter: peft's layer for
    # the module adds its adapter to the frozen weights in each forward and takes it off again, which rounding shows.
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
    """Full names of the modules that adapters go beside.

    Args:
        model: one image is sent through it, to see what it calls.
        asked: names, or last parts of names; None: attention's projections.

    Raises:
        UserError: none that can have one is called so.
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
    """Adds every adapter to the weights beside it and takes it out: the same logits, the plain model's modules.

    Returns:
        How many there were.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    count = 0
    # One by one, the outer first: of torchvision's attention the output projection has an adapter inside the adapter.
    while found := next(((n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)), None):
        name, layer = found
        if not layer.merged:
            layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
        count += 1
    return count


def _unmergeable(module: nn.Module) -> str:
    """Why the sum of a module's weights and its adapter's is not what both compute, in words; "" where it is.

    peft's adapter of a convolution is a plain one: it sees all channels, whatever the groups, neither dilates nor pads
    with anything but zeros, and knows nothing of weights that are standardised in the forward.
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
    """Which of these modules the model calls. Of others it takes the weights alone, and would not know of an adapter:
    Beit's qkv, the projections of torchvision's attention, and that itself where tokens are merged."""
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
