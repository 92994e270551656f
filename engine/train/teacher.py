"""Builds the teacher of a run: the run's own model before training, the model of another run, or one from a hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.data import Data
from engine.data.names import same_names
from engine.machine import seed_step
from engine.runs.checkpoints.checkpoint import digest_of
from engine.runs.checkpoints.weights import built, load_start
from engine.runs.folder import RunFolder, with_budget
from engine.runs.restore import load_model
from engine.settings.distill import SELF, is_hub_name, is_run
from engine.settings.schema import RunSettings
from engine.train.loop.distillation import Teacher
from engine.wording import counted
from models.builders import build
from models.interface import last_tokens, without_merging
from models.modes import in_evaluation_mode
from models.registry import MODELS
from models.settings import UserError, check
from models.settings.zoo import normalisation, split_name
from models.weights.load import load_weights

log = logging.getLogger("hybridmerge")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


@dataclass(frozen=True)
class Source:
    """A model that can teach.

    Attributes:
        model: with its weights, on the CPU.
        statistics: by which its images are normalised; None: as those of the run.
    """

    model: nn.Module
    statistics: Statistics | None = None

    @property
    def digest(self) -> str:
        """Of its weights: a run resumes with the same teacher."""
        return digest_of(self.model.state_dict())


def source_of(settings: RunSettings, data: Data) -> Source | None:
    """Loads the model that teaches a run; None where none does.

    Args:
        settings: of the run, with the number of classes filled in.
        data: its data.

    Raises:
        UserError: the teacher cannot be loaded, or its classes or channels are not those of the data.
    """
    name = settings.train.teacher
    if name is None:
        return None
    if name == SELF:
        source = _itself(settings)
    elif is_hub_name(name):
        source = _from_hub(name, settings, data)
    else:
        source = _of_run(name, settings, data)
    channels = data.shape[0]
    if source.model.in_chans != channels:
        raise UserError(
            f"train.teacher = {name!r}: takes {source.model.in_chans} channels, and the images have {channels}; "
            "choose another"
        )
    return source


def teacher_of(
    source: Source, settings: RunSettings, data: Data, student: nn.Module, autocast: torch.autocast
) -> Teacher:
    """Makes a teacher of a model, on the device of the student.

    Raises:
        UserError: tokens are to be compared, and the two models do not have the same.
    """
    device = next(student.parameters()).device
    own_mean, own_std = source.statistics or (data.mean, data.std)
    wants = settings.train.distill.tokens > 0
    model = source.model.to(device)
    teacher = Teacher(model, autocast, data.mean, data.std, own_mean, own_std, model.img_size, wants)
    if wants:
        image = torch.zeros(1, *data.shape, device=device)
        try:
            theirs, own = teacher(image).tokens, _tokens_of(student, image, autocast)
        except UserError as error:
            raise UserError(
                f"train.distill.tokens = {settings.train.distill.tokens:g}: {error}; set it to 0 for other models"
            ) from None
        assert theirs is not None
        if own.shape != theirs.shape:
            said = [f"{shape[1]} tokens of width {shape[2]}" for shape in (own.shape, theirs.shape)]
            raise UserError(
                f"train.distill.tokens = {settings.train.distill.tokens:g}: this model has {said[0]}, the teacher "
                f"{said[1]}; set it to 0, or choose a teacher of this shape"
            )
    return teacher


@torch.no_grad()
def _tokens_of(model: nn.Module, image: Tensor, autocast: torch.autocast) -> Tensor:
    """The tokens of an image (1, C, H, W) that leave the last block, (1, P + N, C); the model is left as it was."""
    with in_evaluation_mode(model), autocast, last_tokens(model) as found:
        model(image)
    return found[-1]


def _itself(settings: RunSettings) -> Source:
    """The run's own model with the weights that it starts from, without merging."""
    if settings.model.weights is None:
        raise UserError(
            "train.teacher = 'self': the model has random weights before training; give model.weights, or a run as "
            "the teacher"
        )
    merged = built(with_budget(settings))
    report = load_start(merged, settings)
    model = built(settings.model_copy(update={"model": without_merging(settings.model)}))
    own = model.state_dict().keys()  # all but the heads of a learned metric
    model.load_state_dict({name: value for name, value in merged.state_dict().items() if name in own})
    if report is not None and report.replaced and settings.train.distill.logits:
        raise UserError(
            f"train.teacher = 'self': its classifier is new ({report.replaced[0]}) and knows nothing; train it without "
            "merging and give that run as the teacher, or compare tokens alone: train.distill.logits=0 "
            "train.distill.tokens=1"
        )
    return Source(model)


def _from_hub(name: str, settings: RunSettings, data: Data) -> Source:
    library, _, arch = name.partition(":")
    if library == "torchvision":
        arch = arch.partition(".")[0]
    given = {"name": f"{library}:{arch}", "weights": name, "in_chans": data.shape[0], "num_classes": len(data.classes)}
    seed_step(settings.seed, 0)  # a classifier that does not fit is the same one when the run resumes
    try:
        checked = check(MODELS[library][0], split_name(given), where="model")
        model = build(checked)
        report = load_weights(model, name)
    except UserError as error:  # it speaks of the model of a run
        said = str(error).removeprefix(f"model.weights = {name!r}: ")
        raise UserError(f"train.teacher = {name!r}: {said}; a run that has trained it can teach, too") from None
    if report.replaced and settings.train.distill.logits:
        classes = counted(len(data.classes), "class")
        raise UserError(
            f"train.teacher = {name!r}: its classifier is not for the {classes} of the data; train it on them and give "
            "that run, or compare tokens alone: train.distill.logits=0 train.distill.tokens=1"
        )
    return Source(model, normalisation(checked))


def _of_run(path: str, settings: RunSettings, data: Data) -> Source:
    run = folder_of_teacher(settings)
    assert run is not None
    threads = torch.get_num_threads()
    try:
        trained = load_model(run, ["device=cpu"])
    finally:
        torch.set_num_threads(threads)
    if not same_names(trained.classes, data.classes):
        raise UserError(
            f"train.teacher = {path!r}: was trained on other classes, or on these in another order; choose another run"
        )
    if trained.results is None:
        log.warning(
            "train.teacher: %s is not finished; a run that learns from it resumes only as long as it stays", run
        )
    if trained.settings.data.task is not data.task:
        raise UserError(f"train.teacher = {path!r}: was trained on another kind of labels; choose another run")
    return Source(trained.model, (trained.mean, trained.std))


def folder_of_teacher(settings: RunSettings) -> RunFolder | None:
    """The run folder that teaches; None where none does.

    Of a run in folds it is the same fold, which has not seen the images that test this one.

    Raises:
        UserError: there is no run in the folder, or not one for each fold of this run.
    """
    name = settings.train.teacher
    if name is None or not is_run(name):
        return None
    run = RunFolder(name)
    if not run.is_run:
        raise UserError(f"train.teacher = {name!r}: no run folder; train it first, or correct the path")
    folds = run.settings.split.folds
    if not run.holds_folds or settings.split.fold is None:
        return run
    if folds != settings.split.folds:
        raise UserError(
            f"train.teacher = {name!r}: has {folds} folds, and split.folds = {settings.split.folds}; use as many, so "
            "that no fold learns from images that test it"
        )
    for number in range(folds):
        if not run.fold(number).checkpoint("best").is_file():
            raise UserError(
                f"train.teacher = {name!r}: its fold {number} is not trained; finish it with --resume {name}"
            )
    return run.fold(settings.split.fold)
