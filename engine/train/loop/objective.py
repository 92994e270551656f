"""The training objective as a module: one `forward` from images and targets to the loss."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from engine.tasks import Task
from engine.train.loop.weighting import WEIGHTINGS
from models.interface import SeveralHeads, merging_losses


class Objective(nn.Module):
    """Computes the loss of a network on a batch.

    It is a module so that it can be wrapped as a whole, by DistributedDataParallel for example: a training step calls
    nothing but the wrapped module's `forward`, which is where such wrappers do their work.

    Args:
        network: what learns: images (B, C, H, W), or features, -> logits (B, classes). If it has several heads, its
            `forward_heads` returns the logits of each.
        task: what the labels mean.
        autocast: a reusable context manager for the precision to compute in; the loss is always computed in float32.
        label_smoothing: the share of the target that is spread over all classes; 0 where targets are smoothed already.
        weights: of the classes, float32 (classes,), see `engine.train.loop.weighting`; None: all count alike.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        autocast: AbstractContextManager,
        label_smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weights = None if weights is None else weights.to(next(network.parameters()).device)
        self.network, self.task, self.autocast, self.label_smoothing = network, task, autocast, label_smoothing

    def forward(self, images: Tensor, targets: Tensor, schedule: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Returns the mean loss of a batch, and how many images it got right, as scalars.

        With several heads the loss is the mean over the heads, and the sum of their logits predicts. Of a mixed image
        the class with the largest share counts. What a merging method learns by is added (`merging_losses`).

        Args:
            images: (B, C, H, W), or features.
            targets: labels (B, ...), or soft targets, float32 (B, classes).
            schedule: the number of patches that each block removes in this step; None: as the network has it.
        """
        with merging_losses(self.network) as losses:
            heads = self.heads(images, schedule)
        loss, correct = self.score(heads, targets)
        return loss + mean_of(losses), correct

    def heads(self, images: Tensor, schedule: list[int] | None) -> tuple[Tensor, ...]:
        """The logits (B, classes) of each head; arguments as of `forward`."""
        options = {} if schedule is None else {"schedule": schedule}
        with self.autocast:
            if isinstance(self.network, SeveralHeads):
                return self.network.forward_heads(images, **options)
            return (self.network(images, **options),)

    def score(self, heads: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the logits of each head, and how many images they got right together."""
        losses = [self._loss(logits.float(), targets) for logits in heads]
        return torch.stack(losses).mean(), self.task.correct(sum(heads), targets).sum()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None:
            return self.task.loss(logits, targets, self.label_smoothing)
        return WEIGHTINGS[self.task].loss(logits, targets, self.weights, self.label_smoothing)


def mean_of(losses: list[Tensor]) -> Tensor | float:
    """The mean of scalars; 0 where there are none."""
    return torch.stack(losses).mean() if losses else 0.0
