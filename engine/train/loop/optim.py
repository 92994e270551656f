"""Optimizers, the learning rate of a step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from engine.launch.sharding import optimizer_part, part_of, whole
from models.interface import ExemptFromWeightDecay


def param_groups(model: nn.Module, weight_decay: float, scales: Mapping[str, float] | None = None) -> list[dict]:
    """Groups parameters by whether they decay and by the factor on their learning rate.

    Norms, biases, scales and tokens do not decay: whatever has at most one axis longer than 1, and what a module's own
    `no_weight_decay()` names (timm's convention; position embeddings).

    Args:
        model: the model whose parameters learn.
        weight_decay: of the parameters that decay.
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
        {"params": params, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
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
    """Builds AdamW (Loshchilov & Hutter, 2019) or SGD with momentum over `param_groups`."""
    groups = param_groups(model, weight_decay, scales)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of the optimizer step.

    It rises linearly over `warmup_steps` steps to `lr`, then falls to `min_lr` at step `total_steps`: as half a cosine
    (Loshchilov & Hutter, 2017) or as a straight line.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0
    shape: str = "cosine"  # or "linear"

    def at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        left = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else 1 - done
        return self.min_lr + (self.lr - self.min_lr) * left


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's parameters; buffers, such as BatchNorm's, are copied.

    `module` is a model with the averaged weights. The average starts from the model's own weights, and its decay warms
    up as min(decay, (1 + n) / (10 + n)) over updates n, so that short runs are not averaged with their own beginning.

    Args:
        model: the model to average, with its initial weights.
        decay: of one update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._move)
        self.decay = decay
        self.n_averaged.fill_(1)  # the initial weights; with 0 the first update would replace them

    @property
    def updates(self) -> int:
        """The number of updates so far."""
        return int(self.n_averaged) - 1

    @torch.no_grad()
    def _move(self, averages: list[Tensor], parameters: list[Tensor], _: Tensor) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def saved_state(self, names: set[str] | None = None) -> dict:
        """Returns what a checkpoint holds.

        Args:
            names: the part of the weights to save, since what does not learn is its own average; None: all.
        """
        weights = self.module.state_dict()
        shadow = {name: value for name, value in weights.items() if names is None or name in names}
        return {"updates": self.updates, "shadow": shadow}

    def restore(self, state: dict) -> None:
        """Restores what `saved_state` returned."""
        self.n_averaged.fill_(state["updates"] + 1)
        weights = self.module.state_dict()
        for name, value in state["shadow"].items():
            weights[name].copy_(part_of(value, weights[name]))


class Optimization:
    """Updates the weights: learning rate, clipping, optimizer and moving average.

    Args:
        model: the model whose gradients are clipped and whose weights are averaged.
        optimizer: over groups with a `scale`, the factor on their learning rate.
        rate: the learning rate of each step.
        clip_norm: the largest norm of the gradient; None: not clipped.
        average: the moving average of the weights; None: there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: LearningRate,
        clip_norm: float | None = None,
        average: MovingAverage | None = None,
    ) -> None:
        self.model, self.optimizer, self.rate = model, optimizer, rate
        self.clip_norm, self.average = clip_norm, average

    @property
    def kept_model(self) -> nn.Module:
        """The model with the weights that are evaluated and kept: the moving average, if there is one."""
        return self.model if self.average is None else self.average.module

    def begin(self, step: int) -> float:
        """Sets the learning rate of a step and clears the gradients; returns the learning rate."""
        lr = self.rate.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        return lr

    def clip(self) -> Tensor:
        """Clips the gradients; returns their norm before, a scalar."""
        return whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm or math.inf))

    def restore(self, optimizer: dict, average: dict | None) -> None:
        """Restores the states of the optimizer and of the moving average that a checkpoint holds."""
        self.optimizer.load_state_dict(optimizer_part(optimizer, self.optimizer))
        if self.average is not None:
            self.average.restore(average)

    def apply(self) -> None:
        """Takes the optimizer's step and updates the moving average."""
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
