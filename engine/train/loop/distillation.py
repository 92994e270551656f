"""Distillation: a run that learns from a teacher's answers beside its labels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.settings.distill import DistillSettings
from engine.tasks import Task
from engine.train.loop.objective import Objective, mean_of
from models.interface import last_tokens, merging_losses


class Answer(NamedTuple):
    """What a teacher says of a batch."""

    logits: Tensor  # float32 (B, classes)
    tokens: Tensor | None  # (B, P + N, C), where they are asked for: what leaves the last block


class Teacher:
    """A trained model, which does not learn. It is no module, so that nothing trains, saves or moves it.

    Args:
        model: on the device of the run.
        autocast: a reusable context manager for the precision to compute in.
        mean, std: by which the run normalises its images.
        own_mean, own_std: by which the teacher's images are normalised.
        img_size: the height and width of the teacher's images.
        gives_tokens: whether it is asked for the tokens that leave its last block.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: AbstractContextManager,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        own_mean: tuple[float, ...],
        own_std: tuple[float, ...],
        img_size: int,
        gives_tokens: bool,
    ) -> None:
        self.model, self.autocast, self.img_size = model.eval().requires_grad_(False), autocast, img_size
        self.gives_tokens = gives_tokens
        device = next(model.parameters()).device
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std, own_mean, own_std)
        )
        # (x std + mean - own_mean) / own_std, exactly the identity where both are alike
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answer:
        """Images (B, C, H, W), normalised as those of the run -> its answer."""
        shown = images * self._scale + self._shift
        if images.shape[-1] != self.img_size:
            shown = F.interpolate(shown, (self.img_size, self.img_size), mode="bilinear", antialias=True)
        with self.autocast:
            if not self.gives_tokens:
                return Answer(self.model(shown).float(), None)
            with last_tokens(self.model) as found:
                logits = self.model(shown).float()
        return Answer(logits, found[-1])


class DistilledObjective(Objective):
    """The loss of an `Objective` mixed with how far the network is from a teacher:

        (1 - w) loss(labels) + w T^2 KL(teacher || network) + v |tokens - tokens of the teacher|^2

    The divergence is that of the classes' probabilities (Hinton, Vinyals and Dean, 2015), with several heads of the sum
    of their logits. The last term is the mean over all input tokens and channels of the squared difference between what
    leaves the last blocks, each token normalised to mean 0 and variance 1; as in DynamicViT (Rao et al., 2021), with a
    merged token in the place of each of its members. What a merging method learns by is added.

    Args:
        network, task, autocast, label_smoothing, weights: as of `Objective`.
        teacher: whose answers are learned.
        settings: w, T and v.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        autocast: AbstractContextManager,
        label_smoothing: float,
        weights: Tensor | None,
        teacher: Teacher,
        settings: DistillSettings,
    ) -> None:
        super().__init__(network, task, autocast, label_smoothing, weights)
        self.teacher, self.settings = teacher, settings

    def forward(self, images: Tensor, targets: Tensor, schedule: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """As of `Objective`."""
        answer = self.teacher(images)
        with merging_losses(self.network) as losses:
            if answer.tokens is None:
                heads, difference = self.heads(images, schedule), 0.0
            else:
                with last_tokens(self.network) as found:
                    heads = self.heads(images, schedule)
                difference = between_tokens(found[-1], answer.tokens)
        loss, correct = self.score(heads, targets)
        share = self.settings.logits
        divergence = (
            self.task.distillation(sum(heads).float(), answer.logits, self.settings.temperature) if share else 0.0
        )
        taught = (1 - share) * loss + share * divergence + self.settings.tokens * difference
        return taught + mean_of(losses), correct


def between_tokens(own: Tensor, theirs: Tensor) -> Tensor:
    """The mean squared difference between tokens (B, P + N, C), each normalised to mean 0 and variance 1."""
    own, theirs = (F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in (own, theirs))
    return F.mse_loss(own, theirs)
