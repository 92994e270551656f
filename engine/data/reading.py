"""Many image files: decoded into memory, or left where they are and decoded whenever they are asked for."""

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
from engine.data.images import few, open_rgb, read_image, reason
from engine.data.settings import FileSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")


@dataclass(frozen=True)
class Files(Split):
    """Images that stay in their files (`data.cache: none`): N paths, labels, and a digest of each image's pixels."""

    labels: Tensor
    paths: tuple[str, ...]
    settings: FileSettings
    contents: tuple[bytes, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.settings.size, self.settings.size

    def read(self, index: Tensor) -> Tensor:
        """Images as a model is evaluated on them, uint8 (M, 3, size, size), decoded by a thread for each processor.

        Raises:
            UserError: files that could be read when the run began, and no longer.
        """
        chosen = [Path(self.paths[i]) for i in index.tolist()]
        images, bad = decode(chosen, self.settings)
        refuse(chosen, bad, "data", "put them back")
        return images

    def whole(self, i: int) -> Image.Image:
        """One image, upright, RGB, at its own size.

        Raises:
            UserError: it could be read when the run began, and no longer.
        """
        try:
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
) -> RawData:
    """Decodes all splits at once.

    Args:
        samples: of "train" and perhaps "val" and "test": N files, and labels, int64 (N,) or float32 (N, K).
        classes: names in the order of the labels.
        settings: how; the size is known by now.
        where: start of an error, such as "data.path = 'scenes'".
        fix: end of an error: what to do about files that cannot be read.

    Raises:
        UserError: files that cannot be read, all of them named in the log; with data.on_error = skip only those of test
            and validation, or all of a class. Or more images than memory holds.
    """
    assert settings.size is not None, "data.size: null stands for model.img_size, which is put in before data is built"
    paths = [path for files, _ in samples.values() for path in files]
    log.info("reading %d image files", len(paths))
    if settings.cache == "memory":
        images, bad = decode(paths, settings, where)
        parts = images.split([len(files) for files, _ in samples.values()])
        splits = {
            name: Arrays(part, labels, tuple(map(str, files)))
            for part, (name, (files, labels)) in zip(parts, samples.items())
        }
    else:
        contents, bad = digest_files(paths, settings)
        splits, start = {}, 0
        for name, (files, labels) in samples.items():
            end = start + len(files)
            splits[name], start = Files(labels, tuple(map(str, files)), settings, tuple(contents[start:end])), end
    if bad and settings.on_error == "skip":
        bad = _skipped(splits, bad, classes, where)
    refuse(paths, bad, where, fix)
    return RawData(splits["train"], splits.get("test"), classes, val=splits.get("val"))


def _skipped(splits: dict[str, Split], bad: dict[int, str], classes: list[str], where: str) -> dict[int, str]:
    """Takes the bad images out of the training split, said in the log; returns those of other splits, as they are."""
    train = splits["train"]
    skipped = {i: why for i, why in bad.items() if i < len(train)}  # "train" is the first split
    for i, why in skipped.items():
        log.warning("left out: %r (%s)", train.paths[i], why)
    log.warning("%s: %d of %d training images cannot be read and are left out (data.on_error = skip)", where,
                len(skipped), len(train))  # fmt: skip
    splits["train"] = kept = train.take(torch.tensor([i for i in range(len(train)) if i not in skipped]))
    if not kept.multi_label:
        gone = sorted(set(train.labels.tolist()) - set(kept.labels.tolist()))
        if gone:
            names = few([repr(classes[label]) for label in gone])
            raise UserError(f"{where}: no image of {len(gone)} classes can be read: {names}; repair them")
    return {i: why for i, why in bad.items() if i >= len(train)}


def refuse(paths: Sequence[Path], bad: Mapping[int, str], where: str, fix: str) -> None:
    """Ends with an error if there are bad files, every one of which is named in the log."""
    if not bad:
        return
    named = [f"{str(paths[i])!r} ({why})" for i, why in bad.items()]
    for name in named:
        log.error("cannot be read: %s", name)
    raise UserError(f"{where}: {len(bad)} of {len(paths)} images cannot be read: {few(named)}; {fix}")


def decode(paths: Sequence[Path], settings: FileSettings, where: str = "data") -> tuple[Tensor, dict[int, str]]:
    """All images, uint8 (N, 3, size, size), in the order of `paths`; and of those that cannot be read the reason.

    Raises:
        UserError: more images than memory holds.
    """
    size = settings.size
    try:
        images = torch.zeros((len(paths), 3, size, size), dtype=torch.uint8)
    except RuntimeError:
        raise UserError(f"{where}: {len(paths)} images of {size} x {size} pixels take "
                        f"{len(paths) * 3 * size * size / 1e9:.1f} GB of memory, more than there is; "
                        "set data.cache=none, or data.size to less") from None
    pixels = images.numpy()  # shares its memory

    def read(i: int) -> None:
        pixels[i] = read_image(paths[i], settings).transpose(2, 0, 1)

    return images, each(read, len(paths))


def digest_files(paths: Sequence[Path], settings: FileSettings) -> tuple[list[bytes], dict[int, str]]:
    """Decodes every image once: a digest of its pixels at data.size, and of those that cannot be read the reason."""
    digests = [b""] * len(paths)

    def read(i: int) -> None:
        digests[i] = digest_of(np.ascontiguousarray(read_image(paths[i], settings).transpose(2, 0, 1)))

    return digests, each(read, len(paths))


def each(work: Callable[[int], None], count: int) -> dict[int, str]:
    """Calls `work` with 0 to count - 1, in a thread for each processor; returns why it failed where it did."""

    def attempt(i: int) -> str | None:
        try:
            work(i)
        except Exception as error:  # damaged files make PIL's decoders raise nearly anything
            return reason(error)
        return None

    # PIL warns of what does not keep it from decoding.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        found = list(pool.map(attempt, range(count)))
    return {i: why for i, why in enumerate(found) if why is not None}
