"""Optimizers, the learning rate of a step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from models.interface import ExemptFromWeightDecay


def param_groups(model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None) -> list[dict]:
    """Parameters in groups: those that decay, and those that do not, for each factor on the learning rate.

    Norms, biases, scales and tokens do not: whatever has at most one axis longer than 1, and what a module's own
    `no_weight_decay()` names (timm's convention; position embeddings).

    Args:
        model: whose parameters learn.
        weight_decay: of those that decay.
        scales: the factor of each parameter that will ever learn, by name; None: what requires a gradient, factor 1.

    Returns:
        Groups with `params`, `weight_decay` and `scale`, the greatest factor first.
    """
    if scales is None:
        scales = {name: 1.0 for name, parameter in model.named_parameters() if parameter.requires_grad}
    exempt = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, ExemptFromWeightDecay)
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {
        (scale, decays): [] for scale in sorted({1.0, *scales.values()}, reverse=True) for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if name in scales:
            vector = sum(n > 1 for n in parameter.shape) <= 1
            groups[scales[name], not (vector or name in exempt)].append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay * decays, "scale": scale}
        for (scale, decays), params in groups.items()
        if params or scale == 1.0
    ]


def build_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    betas: tuple[float, float],
    scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) or SGD with momentum over `param_groups`."""
    groups = param_groups(model, weight_decay, scales)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def learning_rate(step: int, total: int, warmup: int, lr: float, min_lr: float, schedule: str) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    Rises linearly over `warmup` steps to `lr`, then falls to `min_lr` at step `total`: as half a cosine
    (Loshchilov & Hutter, 2017) or a straight line.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    left = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return min_lr + (lr - min_lr) * left


class EMA:
    """An exponential moving average of a model's parameters; its buffers (BatchNorm's) are copied.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over updates n, so that short runs are not averaged with
    their own beginning.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.averaged = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights, after an optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in model.state_dict().items():
            if name in self.averaged:
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    def state_dict(self, names: set[str] | None = None) -> dict:
        """The average, or the part of it that is named: what does not learn is its own average."""
        shadow = {name: value for name, value in self.shadow.items() if names is None or name in names}
        return {"updates": self.updates, "shadow": shadow}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
