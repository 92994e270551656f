"""Validation after each epoch: loss and metrics, and pictures of the most confident mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from engine.data import Data
from engine.data.balance import are_unequal
from engine.figures.gallery import mistakes_figure
from engine.launch.group import ALONE, Group
from engine.measure.evaluate import Evaluation, evaluate
from engine.runs.tracking import Tracker


class Validation:
    """Evaluates a model on the validation images and tells the tracker.

    Args:
        data: its validation images are drawn where the model is wrong.
        batches: returns the validation batches, once and in order: images, or the features that the network takes.
        network_of: the part of a model that takes these batches: the model itself, or its head on features.
        autocast: a reusable context manager for the precision to compute in.
        tracker: of the run.
        pictures: the number of most confident mistakes to draw.
        select: the metric by which the best epoch is selected; None: the main metric.
        group: the processes that share the batches.
    """

    def __init__(
        self,
        data: Data,
        batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        network_of: Callable[[nn.Module], nn.Module],
        autocast: AbstractContextManager,
        tracker: Tracker,
        pictures: int = 0,
        select: str | None = None,
        group: Group = ALONE,
    ) -> None:
        self.data, self.batches, self.network_of = data, batches, network_of
        self.autocast, self.tracker, self.pictures = autocast, tracker, pictures
        self.select, self.group = select, group

    def run(self, model: nn.Module, step: int) -> Evaluation:
        """Evaluates a model after this many steps."""
        evaluation = self._evaluated(model)
        self.tracker.scalars(step, evaluation.scalars("val"))
        if evaluation.mistakes:
            self.tracker.figure(
                step, "wrong/val", mistakes_figure(evaluation.mistakes, self.data.val, self.data.classes)
            )
        return evaluation

    def _evaluated(self, model: nn.Module) -> Evaluation:
        """Every process gets the measurements on all images."""
        network, batches, classes = self.network_of(model), self.batches(), len(self.data.classes)
        device = next(model.parameters()).device
        self.group.share_buffers(model)
        options = {"keep_mistakes": self.pictures, "group": self.group}
        return evaluate(network, batches, self.data.task, classes, device, self.autocast, **options)

    def selected(self, evaluation: Evaluation) -> float:
        """Returns the value by which the best epoch is selected: the higher, the better."""
        return evaluation.value(self.select)

    def line(self, evaluation: Evaluation) -> str:
        """Returns the part of an epoch's line in the log: loss, main metric, and what matters for unequal classes."""
        task = self.data.task
        shown = [task.main_metric]
        classes = evaluation.classes
        if classes is not None and are_unequal(classes.images, self.data.train_class_images):
            shown.append(task.class_metric)
        names = dict.fromkeys([*shown, self.select or task.main_metric])
        scores = " ".join(f"{name} {evaluation.metrics[name]:.4f}" for name in names)
        return f"val loss {evaluation.loss:.4f} {scores}"
