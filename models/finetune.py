"""Fine-tuning: which parameters are trained, from which epoch on, and with which learning rate."""

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
    """Decides which parameters of a model are trained in each epoch, and freezes the others.

    LoRA's adapters are added to the model if the settings request them.

    Args:
        model: the model with its weights; its `head_names` name the modules that classify. LoRA changes it in place.
        settings: how to fine-tune; None: all parameters are trained.
        lr: the run's learning rate, to which `scales` are relative.

    Attributes:
        learns_from: the epoch, from 0, in which the training of each parameter begins, by name.
        scales: the factor on the learning rate of every parameter that is trained at any time, by name.
        partial: whether so few parameters are trained that they are saved without the others.

    Raises:
        UserError: parts or targets match nothing.
    """

    def __init__(self, model: nn.Module, settings: FinetuneSettings | None, lr: float) -> None:
        self.model, self.settings = model, settings
        mode = settings.mode if settings else "full"
        self.partial = mode in ("head", "lora")
        self.learns_from: dict[str, int] = {}
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

        Modules that are trained are in training mode. All others are frozen and in evaluation mode, so that BatchNorm's
        statistics do not change and there is no dropout.

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
        """Describes the parameters that are trained now, for the log."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        count, total = sum(p.numel() for p in learning), sum(p.numel() for p in self.model.parameters())
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return f"learning: {count:,} of {total:,} parameters ({100 * count / total:.2f} %): {_summary(names)}"

    def trained(self) -> int:
        """Returns the number of parameters that are trained at any time."""
        return sum(p.numel() for name, p in self.model.named_parameters() if name in self.learns_from)

    def saved_names(self) -> set[str] | None:
        """Returns the entries of the state dict in a `partial` checkpoint: trained parameters and the head's buffers.

        Returns:
            Their names; None if everything is saved.
        """
        if not self.partial:
            return None
        heads = tuple(f"{head}." for head in heads_of(self.model))
        buffers = {name for name, _ in self.model.named_buffers() if name.startswith(heads)}
        return (set(self.learns_from) | buffers) & set(self.model.state_dict())


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that classify."""
    return model.head_names


def parameters_of(model: nn.Module, parts: Iterable[str], key: str) -> list[str]:
    """Returns the names of the parameters in some parts of a model.

    Args:
        model: the model.
        parts: names of modules or of parameters; "head" stands for the model's heads.
        key: the key of the settings that holds the parts, for error messages.

    Raises:
        UserError: a part does not exist; the message names the nearest ones.
    """
    names, selected = [name for name, _ in model.named_parameters()], []
    for part in parts:
        paths = heads_of(model) if part == "head" else (part,)
        inside = [n for n in names if any(n == path or n.startswith(f"{path}.") for path in paths)]
        if not inside:
            known = sorted({n.rsplit(".", i)[0] for n in names for i in range(n.count(".") + 1)})
            if len(near := nearest(part, known)) > 200:
                near = f"known: {', '.join(dict.fromkeys(n.partition('.')[0] for n in names))}, and what is in them"
            raise UserError(f"{key} = {part!r}: matches no parameter of the model; {near}")
        selected += [n for n in inside if n not in selected]
    return selected


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Returns each parameter's layer, counted from the input; the head's is the last (Clark et al., 2020; BEiT).

    timm's models define their layers. In other models, layers are the numbered modules in the order of the model's
    definition. Parameters before the first of them, and those of a stem, are in layer 0, and parameters after the last
    of them are in the head's layer. Any other parameter, such as a norm's, is in the layer before it.
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
    """Returns the state dict, or only the named entries."""
    state = model.state_dict()
    return state if names is None else {name: value for name, value in state.items() if name in names}


def frozen_state(model: nn.Module, names: set[str] | None) -> dict[str, Tensor]:
    """Returns the entries of the state dict that are not named; none if `names` is None."""
    return {} if names is None else {name: value for name, value in model.state_dict().items() if name not in names}


def _freeze_modes(model: nn.Module) -> None:
    """Puts modules into evaluation mode if all of their parameters are frozen. A module without parameters, such as
    dropout, is frozen if the nearest parameters before and after it are."""
    modules = list(model.modules())
    owners = [i for i, module in enumerate(modules) if next(module.parameters(recurse=False), None) is not None]
    for i, module in enumerate(modules):
        beside = list(module.parameters())
        if not beside:
            at = bisect(owners, i)
            beside = [p for owner in owners[max(at - 1, 0) : at + 1] for p in modules[owner].parameters(recurse=False)]
        module.training = any(p.requires_grad for p in beside)


def _numbered(model: nn.Module, name: str) -> str | None:
    """Returns the part of a parameter's name up to the first numbered module; None if there is none, and for norms and
    stems, which are not layers."""
    parts = name.split(".")[:-1]
    for i, part in enumerate(parts):
        if re.search(r"\d$", part):
            module = ".".join(parts[: i + 1])
            norm = isinstance(model.get_submodule(module), nn.LayerNorm | nn.BatchNorm2d)
            return None if norm or STEM.search(name) else module
    return None


def _summary(names: list[str], most: int = 6) -> str:
    """Returns a short list of parameters, by the first two parts of their names."""
    short: dict[str, Any] = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
    shown = list(short)
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")
