"""The model that is explored: of a run, or a pretrained model of another library, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.data.loading.inputs import CHANNELS, reading_settings, to_grey
from engine.data.loading.loader import Normalise
from engine.data.settings import FileSettings
from engine.machine import pick_device
from engine.runs.restore import load_model
from engine.settings.models import load_models
from engine.study.zeroshot.labels import class_names
from engine.tasks import ONE_LABEL, Task
from models.interface import model_name
from models.settings import ModelSettings, UserError
from models.settings.zoo import ZooSettings, normalisation
from models.weights.load import load_with_classifier
from models.zoo import build_zoo


@dataclass(frozen=True)
class Subject:
    """A model and how it sees images.

    Attributes:
        title: what it is, in words.
        model: with its weights, in evaluation mode, on its device.
        settings: what it was built from, with a budget solved.
        reading: how image files are read.
        classes: names, in the order of the logits.
        normalise: uint8 images (B, C, H, W) to the model's input.
        task: what the logits mean.
    """

    title: str
    model: nn.Module
    settings: ModelSettings
    reading: FileSettings
    classes: Sequence[str]
    normalise: Normalise
    task: Task

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def input_of(self, image: Tensor) -> Tensor:
        """An image, uint8 (C, H, W) -> the model's input (1, C, H, W)."""
        return self.normalise(image[None]).to(self.device)

    def pixels(self, rgb: Tensor) -> Tensor:
        """An image as it was read, uint8 (3, H, W) -> with the model's channels."""
        return to_grey(rgb[None])[0] if self.settings.in_chans == 1 else rgb


def of_run(folder: Path, overrides: Sequence[str] = ()) -> Subject:
    """Returns the model of a run, with the weights of best.pt.

    Raises:
        UserError: of `load_model`, or the model takes no images.
    """
    run = load_model(folder, overrides)
    return Subject(
        title=f"{model_name(run.settings.model)}, run {run.settings.name}",
        model=run.model.eval(),
        settings=run.settings.model,
        reading=reading_settings(run.settings.data, run.settings.model),
        classes=run.classes,
        normalise=Normalise(run.mean, run.std),
        task=run.settings.data.task,
    )


def of_name(name: str, weights: str, overrides: Sequence[str] = ()) -> Subject:
    """Returns a pretrained model of timm or torchvision.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.
        weights: a file of weights, or `timm:NAME` or `torchvision:NAME`, which are downloaded.
        overrides: changes to the model's settings, such as "merge.method=tome" and "merge.r=8".

    Raises:
        UserError: the model cannot be built, or the weights cannot be read, do not fit, or have no classifier.
    """
    (settings,) = load_models(name, overrides, None).values()
    if not isinstance(settings, ZooSettings):
        raise UserError(f"--model {name}: give timm:NAME or torchvision:NAME; for a model of ours, --run DIR")
    if settings.weights is not None:
        raise UserError(f"model.weights = {settings.weights!r}: given beside --weights {weights}; leave it out")
    if settings.in_chans not in CHANNELS:
        raise UserError(f"model.in_chans = {settings.in_chans}: images have 1 or 3 channels; leave it out")
    settings = settings.model_copy(update={"weights": weights})
    statistics = normalisation(settings)
    if statistics is None:
        raise UserError(f"--weights {weights}: no mean and std are known for them; give a file, or timm:NAME")
    model = build_zoo(settings)
    load_with_classifier(model, weights, f"--weights {weights}")
    return Subject(
        title=model_name(settings),
        model=model.to(pick_device("auto")).eval(),
        settings=settings,
        reading=FileSettings(size=settings.img_size),
        classes=class_names(settings.classes),
        normalise=Normalise(*statistics),
        task=ONE_LABEL,
    )
