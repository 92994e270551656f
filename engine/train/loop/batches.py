"""The batches of each optimizer step: micro-batches, mixed by keyed draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from torch import Tensor

from engine.data.augmentation.mix import Mix

Batch = tuple[Tensor, Tensor]  # images, or features, and their targets


class Loader(Protocol):
    """What gives the training batches: `TrainLoader`, or `FeatureLoader`."""

    batch_size: int

    def __len__(self) -> int:
        """The number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, counted from 0, from batch `start` on."""

    def close(self) -> None:
        """Ends worker processes, if there are any."""


class StepBatches:
    """Groups the batches of a loader into optimizer steps.

    Everything is a function of (seed, step): an epoch can be entered at any of its steps.

    Args:
        loader: the batches of an epoch; those that do not fill a last step are left out.
        accumulate: the number of micro-batches in an optimizer step.
        total_steps: the optimizer steps of the whole training.
        mix: mixup and cutmix; None leaves images and labels as they are.
        seed: of the run, for mixing.
        share: the part of each batch that is yielded, after it is mixed, where several processes train together.
    """

    def __init__(
        self, loader: Loader, accumulate: int, total_steps: int, mix: Mix | None, seed: int, share: slice = slice(None)
    ) -> None:
        self.loader, self.accumulate, self.total_steps = loader, accumulate, total_steps
        self.mix, self.seed, self.share = mix, seed, share
        self.steps_per_epoch = len(loader) // accumulate

    def epoch(self, epoch: int, first_step: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each step that is left in an epoch, their targets on the CPU.

        Args:
            epoch: counted from 0.
            first_step: the first step to yield, counted from the beginning of training.
        """
        done = first_step - epoch * self.steps_per_epoch
        batches = self.loader.epoch(epoch, start=done * self.accumulate)
        for step in range(first_step, min((epoch + 1) * self.steps_per_epoch, self.total_steps)):
            yield [
                self._mixed(images, labels, step * self.accumulate + i)
                for i, (images, labels) in enumerate(islice(batches, self.accumulate))
            ]

    def _mixed(self, images: Tensor, labels: Tensor, key: int) -> Batch:
        if self.mix is not None:
            images, labels = self.mix(images, labels, key, self.seed)
        return images[self.share], labels[self.share]

    def close(self) -> None:
        """Ends the loader's worker processes."""
        self.loader.close()
