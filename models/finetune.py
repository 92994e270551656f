"""Fine-tuning: which parameters learn, from when on, and how fast."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from .interface import LayerGroups
from .lora import add_lora
from .settings import UserError, nearest
from .settings.finetune import FinetuneSettings

STEM = re.compile(r"(^|\.)(patch_embed|stem)\.")


class Tuning:
    """What of a model learns, epoch by epoch. Freezes the rest at once, adapters included where they are asked for.

    Args:
        model: with its weights; its `head_names` name the modules that classify. LoRA changes it in place.
        settings: None trains everything.
        lr: the run's learning rate, of which `scales` are multiples.

    Attributes:
        scales: the factor on the learning rate of every parameter that will ever learn, by name.
        partial: whether so little learns that it is saved without the rest.

    Raises:
        UserError: parts or targets that match nothing.
    """

    def __init__(self, model: nn.Module, settings: FinetuneSettings | None, lr: float) -> None:
        self.model, self.settings = model, settings
        mode = settings.mode if settings else "full"
        self.partial = mode in ("head", "lora")
        self.learns_from: dict[str, int] = {}  # parameter name -> epoch
        self.scales: dict[str, float] = {}
        if mode == "lora":
            add_lora(model, settings.rank or 8, settings.alpha or 16, settings.dropout or 0.0, settings.targets)
            self._add([name for name, p in model.named_parameters() if p.requires_grad])
        if mode in ("head", "lora"):
            self._add(parameters_of(model, heads_of(model), "model"))
        elif mode == "gradual":
            for group in settings.groups:
                self._add(parameters_of(model, group.parts, "finetune.groups.parts"), group.epoch, group.lr / lr)
        else:
            decay = (settings.layer_decay if settings else None) or 1.0
            depths = layer_depths(model) if decay < 1 else dict.fromkeys(dict(model.named_parameters()), 0)
            for name, depth in depths.items():
                self._add([name], 0, decay ** (max(depths.values()) - depth))
        self.begin(0)

    def _add(self, names: Iterable[str], epoch: int = 0, scale: float = 1.0) -> None:
        for name in names:
            if name in self.learns_from and self.settings.mode == "gradual":
                raise UserError(f"finetune.groups: {name} is in two groups; name it in one")
            self.learns_from[name], self.scales[name] = epoch, scale

    def begin(self, epoch: int) -> bool:
        """Sets `requires_grad` and the modes of modules for an epoch, counted from 0.

        What learns is in training mode. The rest is frozen and in evaluation mode, so that no statistics of BatchNorm
        move and nothing is dropped out.

        Returns:
            Whether `requires_grad` of any parameter has changed. A wrapped model must then be wrapped again:
            DistributedDataParallel, for example, records at construction which parameters require gradients.
        """
        changed = False
        for name, parameter in self.model.named_parameters():
            learns = self.learns_from.get(name, epoch + 1) <= epoch
            changed |= learns != parameter.requires_grad
            parameter.requires_grad_(learns)
        self.model.train()
        _freeze_modes(self.model)
        return changed

    def describe(self) -> str:
        """Describes what learns now, for the log."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        count, total = sum(p.numel() for p in learning), sum(p.numel() for p in self.model.parameters())
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return f"learning: {count:,} of {total:,} parameters ({100 * count / total:.2f} %): {_summary(names)}"

    def trained(self) -> int:
        """How many parameters ever learn."""
        return sum(p.numel() for name, p in self.model.named_parameters() if name in self.learns_from)

    def saved_names(self) -> set[str] | None:
        """What of the state dict a checkpoint holds where it is `partial`: what learns, and the head's buffers."""
        if not self.partial:
            return None
        heads = tuple(f"{head}." for head in heads_of(self.model))
        buffers = {name for name, _ in self.model.named_buffers() if name.startswith(heads)}
        return (set(self.learns_from) | buffers) & set(self.model.state_dict())


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that classify."""
    return model.head_names


def parameters_of(model: nn.Module, parts: Iterable[str], key: str) -> list[str]:
    """Names of the parameters that `parts`, names of modules or of parameters, stand for; "head": the model's heads.

    Raises:
        UserError: a part that there is not, with the nearest that there are.
    """
    names, found = [name for name, _ in model.named_parameters()], []
    for part in parts:
        wanted = heads_of(model) if part == "head" else (part,)
        inside = [n for n in names if any(n == w or n.startswith(f"{w}.") for w in wanted)]
        if not inside:
            known = sorted({n.rsplit(".", i)[0] for n in names for i in range(n.count(".") + 1)})
            if len(near := nearest(part, known)) > 200:
                near = f"known: {', '.join(dict.fromkeys(n.partition('.')[0] for n in names))}, and what is in them"
            raise UserError(f"{key} = {part!r}: matches no parameter of the model; {near}")
        found += [n for n in inside if n not in found]
    return found


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Each parameter's layer, counted from the input; the head's is the last (Clark et al., ELECTRA, 2020; BEiT).

    timm's models say themselves. Elsewhere layers are numbered modules in the order of the model's definition; what
    comes before the first of them is layer 0, like a stem and its parts, what comes after the last of them is the
    head's. Anything else, and a norm, belongs to the layer before it.
    """
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, LayerGroups):
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        order = {layer: depth for depth, layer in enumerate(sorted(set(layers.values()), key=float))}
        depths = {name: order[layer] for name, layer in layers.items() if name in names}
    else:
        keys = [_numbered(model, name) for name in names]
        numbered = [key for key in dict.fromkeys(keys) if key is not None]
        end = max((i for i, key in enumerate(keys) if key is not None), default=-1)
        depths, last = {}, 0
        for i, (name, key) in enumerate(zip(names, keys, strict=True)):
            last = numbered.index(key) + 1 if key is not None else last
            depths[name] = 0 if STEM.search(name) else last if i <= end or last == 0 else len(numbered) + 1
    top = max(depths.values(), default=0)
    heads = tuple(f"{head}." for head in heads_of(model))
    return {name: top if name.startswith(heads) else depths.get(name, top) for name in names}


def partial_state(model: nn.Module, names: set[str] | None) -> dict[str, Tensor]:
    """The state dict, or those of its entries that are named."""
    state = model.state_dict()
    return state if names is None else {name: value for name, value in state.items() if name in names}


def frozen_state(model: nn.Module, names: set[str] | None) -> dict[str, Tensor]:
    """What of the state dict is not named; nothing where everything is saved."""
    return {} if names is None else {name: value for name, value in model.state_dict().items() if name not in names}


def _freeze_modes(model: nn.Module) -> None:
    """Puts every module whose parameters are all frozen into evaluation mode, and every one that has none, such as
    dropout, if the parameters next to it on both sides are frozen."""
    modules = list(model.modules())
    owners = [i for i, module in enumerate(modules) if next(module.parameters(recurse=False), None) is not None]
    for i, module in enumerate(modules):
        beside = list(module.parameters())
        if not beside:
            at = bisect(owners, i)
            beside = [p for owner in owners[max(at - 1, 0) : at + 1] for p in modules[owner].parameters(recurse=False)]
        module.training = any(p.requires_grad for p in beside)


def _numbered(model: nn.Module, name: str) -> str | None:
    """The part of a parameter's name up to the first module that has a number; None where there is none, and for norms
    and stems, which are no layers."""
    parts = name.split(".")[:-1]
    for i, part in enumerate(parts):
        if re.search(r"\d$", part):
            module = ".".join(parts[: i + 1])
            norm = isinstance(model.get_submodule(module), nn.LayerNorm | nn.BatchNorm2d)
            return None if norm or STEM.search(name) else module
    return None


def _summary(names: list[str], most: int = 6) -> str:
    """Parameters by the first two parts of their names."""
    short: dict[str, Any] = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    shown = list(short)
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")
