"""What the methods that perturb images share: their options' checks, seeds, baseline, and the model's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..settings import UserError

Progress = Callable[[int, int], object]  # (images evaluated, images to evaluate): called after every batch


class Evaluation:
    """Runs a model on perturbed images, without gradients.

    Args:
        model: in evaluation mode.
        total: how many images there will be.
        progress: told after every batch how many of them are done; None: nobody is.
    """

    def __init__(self, model: nn.Module, total: int, progress: Progress | None) -> None:
        self._model, self._total, self._progress = model, total, progress
        self._done = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, classes)."""
        with torch.inference_mode():
            logits: Tensor = self._model(images)
        self._done += len(images)
        if self._progress is not None:
            self._progress(self._done, self._total)
        return logits


@contextmanager
def giving_logits(model: nn.Module) -> Iterator[None]:
    """In this context a classifier of transformers returns its logits alone, as all others do."""

    def logits_of(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        logits = getattr(output, "logits", None)
        return logits if isinstance(logits, Tensor) else None  # None: the output stays as it is

    hook = model.register_forward_hook(logits_of)
    try:
        yield
    finally:
        hook.remove()


def mean_colour(image: Tensor) -> Tensor:
    """The baseline of an image (..., C, H, W): its own mean in each channel, everywhere; of the same shape."""
    return image.mean((-2, -1), keepdim=True).expand_as(image)


def whole(name: str, value: object, least: int = 1) -> int:
    """Checks an option that is a whole number.

    Raises:
        UserError: it is not one, or below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} = {value!r}: give a whole number of at least {least}")
    return value


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Everything random in this context, a model's own draws included, follows from the seed.

    The state of torch's generators outside is as if nothing had been drawn.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach devices that were not forked
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def needs(method: str, packages: str) -> Iterator[None]:
    """Turns a failed import into one line that says what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{method}: needs {packages}; pip install 'hybridmerge[explain]'") from error
