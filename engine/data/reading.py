"""Reads many image files: into memory once, or from disk whenever they are used (`data.cache`)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.arrays import Arrays, RawData, Split, digest_of
from engine.data.check.findings import Source, content_findings, log_warnings
from engine.data.images import Facts, open_rgb, read_with_facts, reason, to_square
from engine.data.settings import FileSettings
from engine.tasks import ONE_LABEL, Task
from engine.wording import counted, few
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")


@dataclass(frozen=True)
class Files(Split):
    """A split whose images stay in their files (`data.cache: none`), with a digest of each image's pixels."""

    labels: Tensor
    paths: tuple[str, ...]
    settings: FileSettings
    contents: tuple[bytes, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.settings.size, self.settings.size

    def read(self, index: Tensor) -> Tensor:
        """Returns the images at `index` as in evaluation, uint8 (M, 3, size, size), decoded in several threads.

        Raises:
            UserError: files that were readable when the run began no longer are.
        """
        chosen = [Path(self.paths[i]) for i in index.tolist()]
        images, bad = decode(chosen, self.settings)
        raise_unreadable(chosen, bad, "data", "put them back")
        return images

    def whole(self, i: int) -> Image.Image:
        """Returns one image, upright, RGB, at its original size.

        Raises:
            UserError: the file was readable when the run began and no longer is.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")  # about faults that do not prevent decoding
                return open_rgb(Path(self.paths[i]), self.settings)
        except Exception as error:
            raise UserError(f"data: {self.paths[i]!r} can no longer be read ({reason(error)}); put it back") from None

    def take(self, indices: Tensor) -> Files:
        chosen = indices.tolist()
        paths, contents = (tuple(values[i] for i in chosen) for values in (self.paths, self.contents))
        return Files(self.labels[indices], paths, self.settings, contents)

    def digests(self) -> Sequence[bytes]:
        return self.contents

    def pixels(self) -> bytes:
        return b"".join(self.contents)


def read_splits(
    samples: Mapping[str, tuple[Sequence[Path], Tensor]],
    classes: list[str],
    settings: FileSettings,
    where: str,
    fix: str = "repair or delete them",
    task: Task = ONE_LABEL,
) -> RawData:
    """Decodes the images of all splits.

    Args:
        samples: for "train" and optionally "val" and "test", N files and labels, (N, ...).
        classes: names in the order of the labels.
        settings: how files are read; `size` is set.
        where: the beginning of error messages, such as "data.path = 'scenes'".
        fix: the end of the error about files that cannot be read: what to do about them.
        task: what the labels mean.

    Raises:
        UserError: files cannot be read (the log names all of them); with data.on_error = skip only if they are test or
            validation images, or all images of a class. Or the images do not fit into memory.
    """
    assert settings.size is not None, (
        "data.size: null stands for model.img_size, which is filled in before data is built"
    )
    paths = [path for files, _ in samples.values() for path in files]
    log.info("reading %s", counted(len(paths), "image file"))
    in_memory = settings.cache == "memory"
    images = _room(len(paths) if in_memory else 0, settings.size, where)
    pixels = images.numpy()  # shares its memory
    digests, facts = [b""] * len(paths), [None] * len(paths)

    def keep(i: int, image: np.ndarray, image_facts: Facts) -> None:
        digests[i], facts[i] = digest_of(image), image_facts
        if in_memory:
            pixels[i] = image

    bad = read_each(paths, settings, keep)
    splits, start = {}, 0
    for name, (files, labels) in samples.items():
        names, part = tuple(map(str, files)), slice(start, start + len(files))
        if in_memory:
            splits[name] = Arrays(images[part], labels, names)
        else:
            splits[name] = Files(labels, names, settings, tuple(digests[part]))
        start = part.stop
    if bad and settings.on_error == "skip":
        bad = _skipped(splits, bad, classes, where, task)
    raise_unreadable(paths, bad, where, repair_advice(bad, fix, samples["train"][1], classes, settings, task))
    log_warnings(content_findings(samples, classes, facts, digests, task), where)
    return RawData(splits["train"], splits.get("test"), classes, val=splits.get("val"), task=task)


def read_source(source: Source, settings: FileSettings) -> RawData:
    """Decodes the images of a source, and logs its warnings.

    Raises:
        UserError: one of the source's findings is an error; or as in `read_splits`.
    """
    source.report()
    return read_splits(source.samples, source.classes, settings, source.where, source.fix, source.task)


def _skipped(
    splits: dict[str, Split], bad: dict[int, str], classes: list[str], where: str, task: Task
) -> dict[int, str]:
    """Removes unreadable images from the training split and logs them; returns those of the other splits."""
    train = splits["train"]
    skipped, others = by_training(bad, len(train))
    for i, why in skipped.items():
        log.warning("left out: %r (%s)", train.paths[i], why)
    if skipped:
        log.warning(
            "%s: %d of %d training images cannot be read and are left out (data.on_error = skip)",
            where,
            len(skipped),
            len(train),
        )
        if loss := lost_classes(train.labels, skipped, classes, task):
            raise UserError(f"{where}: {loss}")
        splits["train"] = train.take(torch.tensor([i for i in range(len(train)) if i not in skipped]))
    return others


def by_training(bad: Mapping[int, str], trained: int) -> tuple[dict[int, str], dict[int, str]]:
    """Separates unreadable images of "train", the first split, with `trained` images, from those of other splits."""
    return {i: why for i, why in bad.items() if i < trained}, {i: why for i, why in bad.items() if i >= trained}


def lost_classes(labels: Tensor, skipped: Mapping[int, str], classes: list[str], task: Task) -> str:
    """Returns an error text if a class, or the whole split, would lose all of its images; otherwise an empty text."""
    if len(skipped) == len(labels):
        return "no training image can be read; repair them"
    if not task.one_class:
        return ""
    kept = {label for i, label in enumerate(labels.tolist()) if i not in skipped}
    gone = [repr(classes[label]) for label in sorted(set(labels.tolist()) - kept)]
    return f"no image of {counted(len(gone), 'class')} can be read: {few(gone)}; repair them" if gone else ""


def repair_advice(
    unreadable: Mapping[int, str],
    fix: str,
    train_labels: Tensor,
    classes: list[str],
    settings: FileSettings,
    task: Task,
) -> str:
    """Returns what to do about images that cannot be read; suggests data.on_error = skip only if that helps.

    Args:
        unreadable: the reason for each unreadable image, by its position; training images come first.
        fix: what to do in any case.
        train_labels: labels of the training images.
        classes: names in the order of the labels.
        settings: the settings of the data.
        task: what the labels mean.
    """
    training, others = by_training(unreadable, len(train_labels))
    if settings.on_error == "skip" or not training or lost_classes(train_labels, training, classes, task):
        return fix
    if others:
        return f"{fix}; data.on_error=skip leaves out those of the training images, never validation or test images"
    return f"{fix}, or set data.on_error=skip to train without them"


def raise_unreadable(paths: Sequence[Path], bad: Mapping[int, str], where: str, fix: str) -> None:
    """Raises a UserError if there are unreadable files, and logs each of them."""
    if not bad:
        return
    named = [f"{str(paths[i])!r} ({why})" for i, why in bad.items()]
    for name in named:
        log.error("cannot be read: %s", name)
    raise UserError(f"{where}: {len(bad)} of {len(paths)} images cannot be read: {few(named)}; {fix}")


def decode(paths: Sequence[Path], settings: FileSettings) -> tuple[Tensor, dict[int, str]]:
    """Decodes image files.

    Returns:
        The images, uint8 (N, 3, size, size), and the reason for each file that cannot be read, by its position in
        `paths`.

    Raises:
        UserError: the images do not fit into memory.
    """
    images = _room(len(paths), settings.size, "data")
    pixels = images.numpy()  # shares its memory

    def keep(i: int, image: np.ndarray, _: Facts) -> None:
        pixels[i] = image

    return images, read_each(paths, settings, keep)


def _room(count: int, size: int, where: str) -> Tensor:
    try:
        return torch.zeros((count, 3, size, size), dtype=torch.uint8)
    except RuntimeError:
        needed = count * 3 * size * size / 1e9
        raise UserError(
            f"{where}: {count} images of {size} x {size} pixels take {needed:.1f} GB of memory, more than "
            "there is; set data.cache=none, or a smaller data.size"
        ) from None


def read_each(
    paths: Sequence[Path], settings: FileSettings, keep: Callable[[int, np.ndarray, Facts], None]
) -> dict[int, str]:
    """Decodes every image once, with one thread per processor.

    Args:
        paths: N files.
        settings: how files are read; `size` is set.
        keep: called, from any thread, with a position in `paths`, the image as in evaluation, contiguous uint8
            (3, size, size), and the facts about its file.

    Returns:
        The reason for each image that cannot be read, by its position.
    """

    def read(i: int) -> None:
        image, facts = read_with_facts(paths[i], settings)
        keep(i, np.ascontiguousarray(to_square(image, settings).transpose(2, 0, 1)), facts)

    return call_each(read, len(paths))


def call_each(work: Callable[[int], None], count: int) -> dict[int, str]:
    """Calls `work` with 0 to count - 1, one thread per processor; returns the reason for each call that fails."""

    def attempt(i: int) -> str | None:
        try:
            work(i)
        except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
            return reason(error)
        return None

    # Pillow warns about faults that do not prevent decoding.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        reasons = list(pool.map(attempt, range(count)))
    return {i: why for i, why in enumerate(reasons) if why is not None}
