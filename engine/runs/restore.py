"""Models from settings, weights into them, and a finished run's folder back into a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.data import Data, build_data
from engine.machine import pick_device, seed_step
from engine.runs import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.results import Results
from engine.settings.schema import RunSettings
from models.budget import solve
from models.finetune import Tuning, frozen_state
from models.interface import merge_settings
from models.lora import merge_lora
from models.registry import build
from models.settings import UserError
from models.weights import load_weights as load_weights_from
from models.zoo import normalisation

log = logging.getLogger("hybridmerge")


def with_budget(settings: RunSettings) -> RunSettings:
    """The settings with `merge.target_gmacs` or `target_ratio` solved: what a model is built from.

    A run folder keeps the settings as they were asked for.
    """
    return settings.model_copy(update={"model": solve(settings.model)})


def built(settings: RunSettings) -> nn.Module:
    """The model of the settings, its weights drawn from the run's seed."""
    seed_step(settings.seed, 0)
    return build(solve(settings.model)).to(memory_format=torch.channels_last)


def check_fits(settings: RunSettings, data: Data) -> None:
    """Raises UserError where the model's input or classes are not the data's, or no label applies to what tests it."""
    data.task.check_measurable(data.classes, {"val": data.val.labels, "test": data.test.labels})
    channels, height, width = data.shape
    wanted = {"in_chans": channels, "img_size": height, "num_classes": len(data.classes)}
    if height != width:
        raise UserError(f"data.name = {settings.data.name!r}: images are {height} x {width}; models take square ones")
    for key, value in wanted.items():
        given = getattr(settings.model, key)
        if given != value:
            raise UserError(f"model.{key} = {given}: the data has {value}; set model.{key}={value}")


def start_weights(model: nn.Module, settings: RunSettings) -> None:
    """Loads the weights that the run starts from, where it names any; the log says what became of them."""
    source = settings.model.weights
    if source is None:
        return
    is_run = (Path(source) / "settings.yaml").is_file() and (Path(source) / "best.pt").is_file()
    if Path(source).is_file():
        checkpoint.verify(Path(source))
    report = load_weights_from(model, source, _weights_of_run(Path(source)) if is_run else None)
    for line in report.lines():
        log.info(line)


def _weights_of_run(folder: Path) -> dict[str, Tensor]:
    """A run's best weights, all of them, also where its checkpoint holds only what learnt."""
    settings, _ = read_settings(folder)
    state = checkpoint.load(folder / "best.pt")
    if not _is_partial(settings):
        return state["model"]
    return _rebuilt(settings, settings, state, folder / "best.pt").state_dict()


def _is_partial(settings: RunSettings) -> bool:
    """Whether the run's checkpoints hold what learnt, and no more."""
    return settings.finetune is not None and settings.finetune.mode in ("head", "lora")


def _rebuilt(stored: RunSettings, settings: RunSettings, state: dict, file: Path) -> nn.Module:
    """The model of a checkpoint that holds what learnt: built as it was trained, by `stored`, from the weights that
    `settings` name; adapters are added to the weights beside them."""
    model = built(stored)
    start_weights(model, settings)
    load_trained(model, state, file, Tuning(model, settings.finetune, settings.train.lr).saved_names())
    merge_lora(model)
    return model


def load_trained(model: nn.Module, state: dict, path: Path, names: set[str] | None) -> None:
    """Copies a checkpoint's weights into the model.

    Args:
        model: where only a part learnt, with the weights that the run started from.
        state: the checkpoint.
        path: where it is from, for errors.
        names: the part that the checkpoint holds; None: all of it.

    Raises:
        UserError: another model's weights, or the part that did not learn is not what it was.
    """
    if names is not None and state.get("frozen") != checkpoint.digest_of(frozen_state(model, names)):
        raise UserError(
            f"{path}: holds only what learnt, and model.weights are not those that the run started from; "
            "give the same weights"
        )
    checkpoint.load_model_state(model, state["model"], str(path), names)


def load_weights(model: nn.Module, data: Data, path: Path, names: set[str] | None = None) -> dict:
    """Loads a checkpoint's weights into the model, or the part of them that it holds; returns the checkpoint.

    Raises:
        UserError: no such checkpoint, a damaged one, another model's, or one for other classes than the data's.
    """
    state = _load_checked(path, data.classes)
    load_trained(model, state, path, names)
    return state


def _load_checked(path: Path, classes: list[str] | None) -> dict:
    """A checkpoint for the data's classes, if there are data."""
    state = checkpoint.load(path)
    if classes is not None and state["classes"] != classes:
        raise UserError(f"{path}: trained on classes {_few(state['classes'])}; the data has {_few(classes)}")
    return state


def _few(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


@dataclass(frozen=True)
class FinishedRun:
    """A run folder read back."""

    settings: RunSettings  # what the model was built from: a budget is solved
    data: Data
    model: nn.Module  # with the checkpoint's weights, on its device
    results: Results | None  # if the run came to its end
    as_trained: bool  # merging is what it was in training


def load_run(folder: Path, overrides: Iterable[str] = (), which: str = "best", data: Data | None = None) -> FinishedRun:
    """Reads a run folder back: its settings, its data, its model with the weights of `best.pt` or `last.pt`.

    Args:
        folder: the run's.
        overrides: what to change of its settings. Any run can merge otherwise than it did while it was trained.
        which: of the checkpoints.
        data: the run's data, where they are loaded already.

    Raises:
        UserError: no run there, or the folder of all folds, or what `load_weights` says.
    """
    settings, as_trained = read_settings(folder, overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    stored, results = _of_one(folder), RunFolder(folder).read_results()
    if stored.data.name == settings.data.name and splits_of(stored) != splits_of(settings):
        may = "has" if same_images(stored, settings) else "may have"
        log.warning("%s: split into others than in training: it %s learnt images that it is tested on now", folder, may)
    if data is None:
        data = build_data(settings.data, settings.split, settings.seed)
        warn_of_other_data(folder, stored, settings, data, results)
    check_fits(settings, data)
    model, state = _trained_model(folder, settings, data.classes, f"{which}.pt")
    if "mean" in state:  # else of an older version, which knew the data's own alone
        data = replace(data, mean=tuple(state["mean"]), std=tuple(state["std"]))
    model = model.to(pick_device(settings.device))
    return FinishedRun(settings, data, model, results, as_trained)


def _of_one(folder: Path) -> RunSettings:
    """The stored settings of a run folder; that of all folds of one is refused."""
    stored, _ = read_settings(folder)
    if stored.split.all_folds:
        raise UserError(
            f"{folder}: holds {stored.split.folds} folds, each a run of its own; give one of them, such as "
            f"{folder / 'fold0'}"
        )
    return stored


def warn_of_other_data(
    folder: Path, stored: RunSettings, settings: RunSettings, data: Data, results: Results | None
) -> None:
    """Says it where data, read and split as for training, wherever they are now, are not those of training."""
    where = ("path", "root", "images", "workers")
    read = [(run.data.model_dump(exclude=set(where)), run.split, run.seed) for run in (stored, settings)]
    if results and read[0] == read[1] and results.data_sha256 not in (None, data.fingerprint()):
        log.warning(
            "%s: was run on other images, labels or pixels than are read here and now; it may have learnt some "
            "that test it",
            folder,
        )


def same_images(one: RunSettings, other: RunSettings) -> bool:
    """Whether the data of both are from one place."""
    return all(getattr(one.data, key, None) == getattr(other.data, key, None) for key in ("name", "path", "root"))


def test_set_of(run: RunSettings) -> list:
    """What decides which of the data's images are the test set."""
    keys = ("test", "test_seed", "folds", "fold")
    return [getattr(run.data, "partition", None), *(getattr(run.split, key) for key in keys)]


def splits_of(run: RunSettings) -> list:
    """What decides which of the data's images test and validate."""
    return [*test_set_of(run), run.split.val, run.seed if run.split.val else None]


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run folder, without the run's data."""

    settings: RunSettings  # what the model was built from: a budget is solved
    model: nn.Module  # with the weights of best.pt, on its device
    classes: list[str]  # names, in the order of the logits
    mean: tuple[float, ...]  # of each channel, of pixels in [0, 1], as the model was trained
    std: tuple[float, ...]
    results: Results | None  # if the run came to its end
    as_trained: bool  # merging is what it was in training


def load_model(folder: Path, overrides: Iterable[str] = ()) -> TrainedModel:
    """Reads the model of a run folder back, with the weights of `best.pt`, where the run's data need not be.

    Args:
        folder: the run's.
        overrides: what to change of its settings, as for `load_run`.

    Raises:
        UserError: no run there, or the folder of all folds, or a run of an older version, or what `load_weights` says.
    """
    settings, as_trained = read_settings(folder, overrides)
    _of_one(folder)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model, state = _trained_model(folder, settings, None, "best.pt")
    if "mean" not in state:
        raise UserError(
            f"{folder / 'best.pt'}: of an older version, without the mean and deviation of the images that "
            "it was trained with; train it again"
        )
    model = model.to(pick_device(settings.device))
    mean, std = tuple(state["mean"]), tuple(state["std"])
    return TrainedModel(settings, model, state["classes"], mean, std, RunFolder(folder).read_results(), as_trained)


def _trained_model(folder: Path, settings: RunSettings, classes: list[str] | None, file: str) -> tuple[nn.Module, dict]:
    """The model with the weights of a checkpoint for these classes, or for any, and the checkpoint."""
    if not _is_partial(settings):
        model, state = built(settings), _load_checked(folder / file, classes)
        load_trained(model, state, folder / file, None)
        return model, state
    stored, _ = read_settings(folder)  # adapters go into the model that they were trained in
    state = _load_checked(folder / file, classes)
    model = _rebuilt(stored, settings, state, folder / file)
    if settings.model != stored.model:
        trained, model = model.state_dict(), built(settings)
        checkpoint.load_model_state(model, trained, str(folder / file))
    return model, state


def read_settings(folder: Path, overrides: Iterable[str] = ()) -> tuple[RunSettings, bool]:
    """A run's settings with overrides, a budget solved; and whether merging is what it was in training.

    Raises:
        UserError: no run there, a wrong override, or merging by a learned metric that its weights do not have.
    """
    run = RunFolder(folder)
    stored, settings = run.settings, run.settings_with(tuple(overrides))
    trained, merge = (merge_settings(s.model) for s in (stored, settings))
    if trained and merge and (trained.compared_by() == "learned") != (merge.compared_by() == "learned"):
        has, fix = "has no", "use a method and a merge.metric that learn nothing"
        if merge.compared_by() != "learned":
            has, fix = "has a", "add merge.metric=learned"
        metric = f"model.merge.metric = {merge.compared_by()!r} ({merge.method})"
        raise UserError(f"{metric}: {folder} {has} learned metric among its weights; {fix}")
    return with_budget(settings), trained == merge


def with_statistics(data: Data, settings: RunSettings, state: dict | None = None) -> Data:
    """The data, normalised as its weights were trained: by the statistics of the checkpoint that the run goes on from,
    or of the run whose weights it starts from, or by a hub's metadata; else by the data's own."""
    weights = settings.model.weights
    found = None
    if state is not None and "mean" in state:
        found = state["mean"], state["std"]
    elif weights is not None:
        path = Path(weights)
        found = checkpoint.statistics(path / "best.pt" if path.is_dir() else path) or normalisation(settings.model)
    if found is None or len(found[0]) != len(data.mean):
        return data
    return replace(data, mean=tuple(found[0]), std=tuple(found[1]))
