"""Runs -> probabilities of images: models read back without their data, images streamed, ensembles averaged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.data import FileSettings
from engine.data.loader import Normalise
from engine.data.reading import decode, refuse
from engine.machine import pick_autocast, to_device
from engine.measure.evaluate import eval_mode
from engine.runs import checkpoint
from engine.runs.folder import RunFolder
from engine.runs.folds import finished_runs
from engine.runs.restore import TrainedModel, load_model, read_settings
from engine.settings.layers import parse_overrides
from engine.tasks import Task
from engine.wording import few
from models.interface import merging_method, removed_per_block
from models.settings import ModelSettings, UserError

log = logging.getLogger("hybridmerge")

BATCH = 64  # images at once, at most: a run whose features are kept trains with more than a whole model takes
# Values of images at once on a CPU, 8 images of 224 px: what layers put out is then in memory that is used again, not
# given back and cleared for each of them, which takes SqueezeNet as long as its arithmetic.
VALUES_CPU = 5 * 2**18
TTA = ("flip", "crops")  # what test-time augmentation there is
MARGIN = 8 / 7  # of the size that images are read at for five crops, over the model's: 256 pixels for 224
GREY = (19595, 38470, 7471)  # ITU-R 601's weights of red, green and blue, of 65536


@dataclass(frozen=True)
class Member:
    """A run folder of an ensemble, and its share of the whole."""

    folder: Path
    share: float


@dataclass(frozen=True)
class Ensemble:
    """Runs that know the same labels.

    Attributes:
        members: whose shares sum up to 1.
        classes: names, in the order of the probabilities: the first run's.
        task: what the labels mean.
        overrides: of the runs' settings.
    """

    members: list[Member]
    classes: list[str]
    task: Task
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N images, float64 (N, K): of one label each, or of each label by itself where there are many.

    `thresholds`, of K labels where there are many: the probability from which on each is said yes to.
    """

    probabilities: Tensor
    classes: list[str]
    task: Task
    thresholds: list[float] | None = None

    def best(self) -> list[str]:
        """Returns the most probable name for each image."""
        return [self.classes[i] for i in self.probabilities.argmax(dim=1).tolist()]

    def names(self) -> list[list[str]]:
        """Returns the names of the classes predicted for each image: one, or any number, none included."""
        thresholds = None if self.thresholds is None else torch.tensor(self.thresholds, dtype=torch.float64)
        return [[self.classes[i] for i in row] for row in self.task.predicted(self.probabilities, thresholds)]

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """For each image the k most probable names, most probable first, and their probabilities."""
        found = self.probabilities.topk(k, dim=1)
        return [
            [(self.classes[i], value) for i, value in zip(indices, values)]
            for indices, values in zip(found.indices.tolist(), found.values.tolist())
        ]


def classes_of(folder: Path) -> tuple[list[str], Task]:
    """Returns the names of a run's classes, in the order of its logits, and what its labels mean.

    Args:
        folder: a run's, or that of all folds of one.
    """
    ensemble = gather([folder])
    return ensemble.classes, ensemble.task


def gather(folders: Sequence[Path], weights: Sequence[float] | None = None, overrides: Sequence[str] = ()) -> Ensemble:
    """Finds the runs that predict together, and checks that they can.

    Args:
        folders: run folders, or folders that hold those of all folds, fold0, fold1, ...: then each fold is a member.
        weights: one for each folder, shared by its folds; None: equal.
        overrides: of every run's settings.

    Raises:
        UserError: no run there, folds that are not done, a run that is given twice, weights that are none, an override
            that is wrong, of the split, or changes a model that cannot merge, or runs of other labels than the first.
    """
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if len(weights) != len(folders):
        raise UserError(f"--weights: {len(weights)} numbers for {len(folders)} runs; give one for each --run")
    if not all(weight > 0 for weight in weights) or not sum(weights) < float("inf"):  # nan is none of both
        given = ",".join(f"{weight:g}" for weight in weights)
        raise UserError(f"--weights {given}: must be numbers greater than 0, of finite sum")
    members = []
    for folder, weight in zip(folders, weights):
        folds = finished_runs(RunFolder(folder))
        members += [Member(fold.path, weight / sum(weights) / len(folds)) for fold in folds]
    count = Counter(member.folder.resolve() for member in members)
    if twice := [member.folder for member in members if count[member.folder.resolve()] > 1]:
        raise UserError(f"--run {twice[-1]}: given twice; give it once, and what it counts by --weights")
    if "split" in parse_overrides(overrides):
        raise UserError(
            f"split: which images a run had held out changes no prediction; for one fold alone give its "
            f"folder, such as --run {members[0].folder}"
        )
    states = [_labels(member.folder, overrides) for member in members]
    for member, state in zip(members[1:], states[1:]):
        _check_same(members[0].folder, states[0], member.folder, state)
    return Ensemble(members, *states[0], tuple(overrides))


def _labels(folder: Path, overrides: Sequence[str]) -> tuple[list[str], Task]:
    """Returns the names of a run's classes and what its labels mean; checks its settings with the overrides."""
    settings, _ = read_settings(folder, overrides)
    return checkpoint.load(folder / "best.pt")["classes"], settings.data.task


def _check_same(one: Path, first: tuple[list[str], Task], other: Path, second: tuple[list[str], Task]) -> None:
    (names, task), (others, other_task) = first, second
    if set(names) != set(others):
        here, there = (sorted(map(repr, a)) for a in (set(names) - set(others), set(others) - set(names)))
        said = [f"{len(a)} only {run} has ({few(a)})" for run, a in ((one, here), (other, there)) if a]
        raise UserError(
            f"--run {other}: its classes are not those of {one}: {', '.join(said)}; give runs on the same classes"
        )
    if task is not other_task:
        raise UserError(f"--run {other}: {one} and it differ in whether an image can have many labels; give runs alike")


def predict(ensemble: Ensemble, paths: Sequence[Path], tta: Sequence[str] = ()) -> Predictions:
    """The mean probabilities of all members and views for each image.

    One model is in memory at a time, and of the images two batches. Each is read as the member reads its own images.

    Args:
        ensemble: the models.
        paths: image files.
        tta: "flip": each image and its mirror image; "crops": its corners and its middle in place of the whole.

    Returns:
        Probabilities in the order of `paths`. Thresholds are the mean of the members'.

    Raises:
        UserError: images that cannot be read, all of them named in the log; a model that takes no photographs; or
            probabilities that are not finite.
    """
    total = torch.zeros(len(paths), len(ensemble.classes), dtype=torch.float64)
    thresholds = torch.zeros(len(ensemble.classes), dtype=torch.float64)
    for member in ensemble.members:
        found, least = _by_member(ensemble, member, paths, tta)
        total += member.share * found
        thresholds += member.share * least
    used = thresholds.tolist() if ensemble.task.has_thresholds else None
    return Predictions(total, ensemble.classes, ensemble.task, used)


def _by_member(ensemble: Ensemble, member: Member, paths: Sequence[Path], tta: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A member's probabilities, float64 (N, K), and its thresholds, (K,), in the order of the ensemble's classes."""
    run = load_model(member.folder, ensemble.overrides)
    order = [run.classes.index(name) for name in ensemble.classes]  # by name: runs may number their classes otherwise
    if not run.as_trained:
        log.warning(
            "%s: merging is not that of training: %s, tokens removed by each block: %s",
            member.folder,
            merging_method(run.settings.model) or "none",
            removed_per_block(run.model),
        )
    found = probabilities(run, paths, ensemble.task, tta, str(member.folder))
    if ensemble.task.has_thresholds:
        return found[:, order], _thresholds(run, member.folder)[order]
    return found[:, order], torch.zeros(len(order), dtype=torch.float64)


def _thresholds(run: TrainedModel, folder: Path) -> Tensor:
    """The probability from which on each label is said yes to, float64 (K,)."""
    known = run.results.thresholds if run.results else None
    if known is None:
        log.warning("%s: has no thresholds (no validation images, or not at its end); 1/2 is taken for all", folder)
        known = dict.fromkeys(run.classes, 0.5)
    return torch.tensor([known[name] for name in run.classes], dtype=torch.float64)


def probabilities(
    run: TrainedModel, paths: Sequence[Path], task: Task, tta: Sequence[str] = (), name: str = "the run"
) -> Tensor:
    """One model's probabilities, float64 (N, K) in the order of its own classes; see `predict`."""
    reading = reading_of(run)
    size, s, device = reading.size, run.settings, next(run.model.parameters()).device
    if "crops" in tta:
        reading = reading.model_copy(update={"size": round(size * MARGIN)})
    normalise, autocast = Normalise(run.mean, run.std), pick_autocast(s.train.precision, device)
    found, bad = [], {}
    batch = min(s.train.batch_size, BATCH if device.type != "cpu" else _batch_on_cpu(s.model))
    with eval_mode(run.model), tqdm(total=len(paths), unit="image", desc=name, disable=None) as bar:
        for start, images, wrong in ahead(paths, reading, batch):
            bad |= {start + i: why for i, why in wrong.items()}
            if not bad:  # else what is left is read alone, so that the error names every file
                images = images if s.model.in_chans == 3 else grey(images)
                views = [_scores(run, view, normalise, autocast, task) for view in views_of(images, size, tta)]
                found.append(torch.stack(views).mean(dim=0))
            bar.update(len(images))
    refuse(paths, bad, "--images", "replace them: test images are never left out")
    scores = torch.cat(found)
    lost = [str(path) for path, fine in zip(paths, scores.isfinite().all(dim=1).tolist()) if not fine]
    if lost:
        raise UserError(
            f"{name}: gives nan or inf for {len(lost)} images ({few(lost)}); train it again with a lower "
            "train.lr, or predict with train.precision=fp32"
        )
    return scores


def _batch_on_cpu(model: ModelSettings) -> int:
    return max(4, min(BATCH, VALUES_CPU // (model.in_chans * model.img_size**2)))


def _scores(run: TrainedModel, images: Tensor, normalise: Normalise, autocast: torch.autocast, task: Task) -> Tensor:
    """Probabilities, float64 (B, K), of images, uint8 (B, C, S, S)."""
    with autocast:
        logits = run.model(to_device(normalise(images), next(run.model.parameters()).device))
    return task.probabilities(logits.float().cpu().double())


def reading_of(run: TrainedModel) -> FileSettings:
    """How a run reads image files. One on images in arrays takes the square in the middle, at its model's size.

    Raises:
        UserError: its images have neither one channel nor three, or another size than the model takes.
    """
    model, data = run.settings.model, run.settings.data
    if model.in_chans not in (1, 3):
        raise UserError(f"model.in_chans = {model.in_chans}: an image file has 1 or 3; give a run on such images")
    if isinstance(data, FileSettings) and data.size is not None:
        if data.size != model.img_size:
            raise UserError(
                f"data.size = {data.size}: the model takes {model.img_size} px; set data.size={model.img_size}"
            )
        return data
    return FileSettings(size=model.img_size)


def grey(images: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> (B, 1, S, S), with PIL's weights and rounding."""
    weights = torch.tensor(GREY, dtype=torch.int32)[:, None, None]
    return ((images.int() * weights).sum(dim=1, keepdim=True) + 2**15 >> 16).to(torch.uint8)


def views_of(images: Tensor, size: int, tta: Sequence[str]) -> Iterator[Tensor]:
    """What of images, uint8 (B, C, S, S), a model gets to see, each (B, C, size, size).

    Five squares where S > size, the corners' and the middle's; and each mirrored, if `tta` has "flip".
    """
    edge = images.shape[-1] - size
    corners = [(0, 0), (0, edge), (edge, 0), (edge, edge), (edge // 2, edge // 2)] if "crops" in tta else [(0, 0)]
    for top, left in corners:
        view = images[:, :, top : top + size, left : left + size]
        yield view
        if "flip" in tta:
            yield view.flip(-1)


def ahead(paths: Sequence[Path], reading: FileSettings, batch: int) -> Iterator[tuple[int, Tensor, dict[int, str]]]:
    """Decodes the images in batches, each while the one before it is made use of.

    Yields:
        The position of the batch's first image, the images, uint8 (B, 3, S, S), and of those in it that cannot be read
        the reason, by their place in the batch.
    """
    parts = [(start, paths[start : start + batch]) for start in range(0, len(paths), batch)]
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for i, (start, _) in enumerate(parts):
            now = coming or pool.submit(decode, parts[i][1], reading)
            coming = pool.submit(decode, parts[i + 1][1], reading) if i + 1 < len(parts) else None
            yield start, *now.result()
