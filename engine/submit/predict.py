"""Predicts image files: probabilities of one run or of several together, without the data that they were trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.data import FileSettings
from engine.data.loading.inputs import read_images, reading_settings
from engine.data.loading.loader import Normalise
from engine.data.names import places
from engine.data.reading import raise_unreadable
from engine.machine import pick_autocast, to_device
from engine.measure.evaluate import eval_mode
from engine.runs.restore import TrainedModel, load_model
from engine.submit.ensemble import Ensemble, Member
from engine.tasks import Task
from engine.wording import counted, few
from models.interface import depends_on_image, merging_method, removed_per_block
from models.settings import ModelSettings, UserError

log = logging.getLogger("hybridmerge")

BATCH = 64  # largest number of images per batch; training a head on cached features may use more than the model can
# Largest number of input values per batch on a CPU: 8 images of 224 px. The layers' outputs then stay small enough for
# the allocator to reuse their memory. Otherwise the memory is returned to the system and cleared for every layer, which
# for SqueezeNet takes as long as the arithmetic.
VALUES_CPU = 5 * 2**18
TTA = ("flip", "crops")  # test-time augmentation
MARGIN = 8 / 7  # ratio of the size at which images are read for five crops to the model's: 256 pixels for 224


@dataclass(frozen=True)
class Predictions:
    """Predicted probabilities for N images.

    Attributes:
        probabilities: float64 (N, K); each row sums to 1 where an image has one label.
        classes: K names.
        task: what the labels mean.
        thresholds: the probability threshold above which each label is predicted, K of them, for tasks that have
            thresholds.
    """

    probabilities: Tensor
    classes: list[str]
    task: Task
    thresholds: list[float] | None = None

    def names(self) -> list[list[str]]:
        """Returns the classes predicted for each image: exactly one, or any number, depending on the task."""
        thresholds = None if self.thresholds is None else torch.tensor(self.thresholds, dtype=torch.float64)
        return [[self.classes[i] for i in row] for row in self.task.predicted(self.probabilities, thresholds)]

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """Returns for each image the k most probable classes and their probabilities, most probable first."""
        values, indices = self.probabilities.topk(k, dim=1)
        return [
            [(self.classes[i], value) for i, value in zip(row, of_row)]
            for row, of_row in zip(indices.tolist(), values.tolist())
        ]


def parse_tta(text: str) -> list[str]:
    """Parses a comma-separated list of entries of TTA.

    Raises:
        UserError: an entry is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TTA]:
        raise UserError(f"--tta {text}: {unknown[0]} is unknown; use {', '.join(TTA)}, or both with a comma")
    return names


def predict(ensemble: Ensemble, paths: Sequence[Path], tta: Sequence[str] = ()) -> Predictions:
    """Computes the mean probabilities over all members and views of each image.

    Only one model and two batches of images are in memory at a time. For each member the images are read with its own
    settings (see engine.data.loading.inputs).

    Args:
        ensemble: the models.
        paths: image files.
        tta: "flip": each image and its mirror image; "crops": its corners and centre instead of the whole image.

    Returns:
        Probabilities in the order of `paths`; the thresholds are the means of the members' thresholds.

    Raises:
        UserError: images cannot be read (the log names all of them), a model does not take photographs, or
            probabilities are not finite.
    """
    total = torch.zeros(len(paths), len(ensemble.classes), dtype=torch.float64)
    thresholds = torch.zeros(len(ensemble.classes), dtype=torch.float64)
    for member in ensemble.members:
        member_probabilities, member_thresholds = _of_member(ensemble, member, paths, tta)
        total += member.share * member_probabilities
        thresholds += member.share * member_thresholds
    used = thresholds.tolist() if ensemble.task.has_thresholds else None
    return Predictions(total, ensemble.classes, ensemble.task, used)


def _of_member(ensemble: Ensemble, member: Member, paths: Sequence[Path], tta: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Returns a member's probabilities, float64 (N, K), and thresholds, (K,), in the ensemble's order of classes."""
    run = load_model(member.run, ensemble.overrides)
    order = places(ensemble.classes, run.classes)  # runs may number their classes differently
    assert order is not None, "runs of an ensemble have the same classes"
    if not run.as_trained:
        log.warning(
            "%s: merging differs from training: %s, tokens removed by each block: %s",
            member.run,
            merging_method(run.settings.model) or "none",
            "a number that depends on the image" if depends_on_image(run.model) else removed_per_block(run.model),
        )
    member_probabilities = probabilities(run, paths, tta)
    thresholds = torch.zeros(len(order), dtype=torch.float64)
    if ensemble.task.has_thresholds:
        thresholds = _thresholds(run)
    return member_probabilities[:, order], thresholds[order]


def _thresholds(run: TrainedModel) -> Tensor:
    """Returns the probability threshold above which each label is predicted, float64 (K,)."""
    thresholds = run.results.thresholds if run.results else None
    if thresholds is None:
        log.warning(
            "%s: has no thresholds (no validation images, or not finished); 1/2 is used for all labels", run.run
        )
        thresholds = dict.fromkeys(run.classes, 0.5)
    return torch.tensor([thresholds[name] for name in run.classes], dtype=torch.float64)


def probabilities(run: TrainedModel, paths: Sequence[Path], tta: Sequence[str] = ()) -> Tensor:
    """Computes one model's probabilities, float64 (N, K), in the order of its own classes; see `predict`."""
    reading = reading_settings(run.settings.data, run.settings.model)
    size, settings, device = reading.size, run.settings, next(run.model.parameters()).device
    if "crops" in tta:
        reading = reading.model_copy(update={"size": round(size * MARGIN)})
    normalise, autocast = Normalise(run.mean, run.std), pick_autocast(settings.train.precision, device)
    parts, unreadable = [], {}
    batch = min(settings.train.batch_size, BATCH if device.type != "cpu" else _batch_on_cpu(settings.model))
    with eval_mode(run.model), tqdm(total=len(paths), unit="image", desc=str(run.run), disable=None) as bar:
        for start, images, failures in read_ahead(paths, reading, settings.model.in_chans, batch):
            unreadable |= {start + i: why for i, why in failures.items()}
            if not unreadable:  # otherwise the rest is only read, so that the error names every file
                views = [_scores(run, view, normalise, autocast) for view in views_of(images, size, tta)]
                parts.append(torch.stack(views).mean(dim=0))
            bar.update(len(images))
    raise_unreadable(paths, unreadable, "--images", "replace them: test images are never left out")
    scores = torch.cat(parts)
    lost = [str(path) for path, finite in zip(paths, scores.isfinite().all(dim=1).tolist()) if not finite]
    if lost:
        raise UserError(
            f"{run.run}: gives nan or inf for {counted(len(lost), 'image')} ({few(lost)}); train it again with a lower "
            "train.lr, or predict with train.precision=fp32"
        )
    return scores


def _batch_on_cpu(model: ModelSettings) -> int:
    return max(4, min(BATCH, VALUES_CPU // (model.in_chans * model.img_size**2)))


def _scores(run: TrainedModel, images: Tensor, normalise: Normalise, autocast: torch.autocast) -> Tensor:
    """Computes the probabilities, float64 (B, K), of images, uint8 (B, C, S, S)."""
    with autocast:
        logits = run.model(to_device(normalise(images), next(run.model.parameters()).device))
    return run.settings.data.task.probabilities(logits.float().cpu().double())


def views_of(images: Tensor, size: int, tta: Sequence[str]) -> Iterator[Tensor]:
    """Yields the views of images, uint8 (B, C, S, S), over which a model's predictions are averaged.

    Each view is (B, C, size, size). With "crops" in `tta` there are five squares, at the corners and in the centre
    (S > size); with "flip", each view is followed by its mirror image.
    """
    edge = images.shape[-1] - size
    corners = [(0, 0), (0, edge), (edge, 0), (edge, edge), (edge // 2, edge // 2)] if "crops" in tta else [(0, 0)]
    for top, left in corners:
        view = images[:, :, top : top + size, left : left + size]
        yield view
        if "flip" in tta:
            yield view.flip(-1)


def read_ahead(
    paths: Sequence[Path], reading: FileSettings, channels: int, batch: int
) -> Iterator[tuple[int, Tensor, dict[int, str]]]:
    """Reads the images in batches, each in the background while the one before it is being used.

    Yields:
        The position of the batch's first image; the images, uint8 (B, channels, S, S); and the reason for each that
        cannot be read, by its position in the batch.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read_images, paths[:batch], reading, channels)
        for start in range(0, len(paths), batch):
            images, unreadable = coming.result()
            if start + batch < len(paths):
                coming = pool.submit(read_images, paths[start + batch : start + 2 * batch], reading, channels)
            yield start, images, unreadable
