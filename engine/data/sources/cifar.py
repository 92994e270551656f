"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): colour images of 32x32 pixels, downloaded and checked by torchvision."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from engine.data.arrays import Arrays, RawData
from engine.data.settings import ArraySettings, DataPath
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

TIMEOUT = 30  # seconds to wait for an answer from the server
FAILURES = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)

# Statistics of the training images, for pixels in [0, 1], as in published recipes.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Cifar10Settings(ArraySettings):
    """`root` is the folder with cifar-10-batches-py or cifar-10-python.tar.gz; they are downloaded if missing."""

    published_classes: ClassVar[int] = 10

    name: Literal["cifar10"] = "cifar10"
    root: DataPath = Field("data", description="folder of the dataset, which is downloaded if it is missing")


class Cifar100Settings(ArraySettings):
    """`root` is the folder with cifar-100-python or cifar-100-python.tar.gz; they are downloaded if missing."""

    published_classes: ClassVar[int] = 100

    name: Literal["cifar100"] = "cifar100"
    root: DataPath = Field("data", description="folder of the dataset, which is downloaded if it is missing")


def load_cifar10(settings: Cifar10Settings) -> RawData:
    """Loads 50,000 training and 10,000 test images, uint8 (N, 3, 32, 32), in 10 classes; see `_load` for errors."""
    from torchvision.datasets import CIFAR10  # slow to import, and not needed by other datasets

    return _load(CIFAR10, Path(settings.root), CIFAR10_MEAN, CIFAR10_STD)


def load_cifar100(settings: Cifar100Settings) -> RawData:
    """Loads 50,000 training and 10,000 test images, uint8 (N, 3, 32, 32), in 100 classes; see `_load` for errors."""
    from torchvision.datasets import CIFAR100  # slow to import, and not needed by other datasets

    return _load(CIFAR100, Path(settings.root), CIFAR100_MEAN, CIFAR100_STD)


def _load(source: Any, root: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> RawData:
    """Loads both halves of one of torchvision's CIFAR classes, after a download if `root` holds no intact copy.

    Raises:
        UserError: there is no intact copy and none can be downloaded; the message says what is damaged and what to do.
    """
    damaged: list[str] = []
    try:
        if all((root / name).is_file() for name, _ in _files(source)):
            raise UserError(
                f"data.root = {str(root)!r}: this is {source.base_folder} itself; set data.root to the "
                f"folder that holds it, {str(root.absolute().parent)!r}"
            )
        damaged = _damaged(source, root)
        if damaged or not (root / source.base_folder).is_dir():
            _fetch(source, root, damaged)
        train, test = source(str(root), train=True), source(str(root), train=False)
    except FAILURES as error:
        state = f"missing or damaged: {', '.join(damaged)}" if damaged else f"no {source.base_folder} there"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data.root = {str(root)!r}: {state}, and fetching {source.filename} failed ({reason}); set data.root to a "
            f"folder that holds an intact {source.base_folder} or {source.filename}, or use data that needs no "
            "download: --cfg digits/hybrid.yaml, or data.name=npz data.path=FILE.npz"
        ) from None
    return RawData(_arrays(train), _arrays(test), list(train.classes), mean=mean, std=std)


def _fetch(source: Any, root: Path, damaged: list[str]) -> None:
    """Downloads the archive, unless an intact one exists, and unpacks it; removes partial files after a failure."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    archive = root / source.filename
    new = [path for path in (archive, root, *root.parents) if not path.exists()]
    if damaged:
        log.warning("%s: missing or damaged: %s; fetching a new copy", root, ", ".join(damaged))
    try:
        with downloading():
            download_and_extract_archive(source.url, str(root), filename=source.filename, md5=source.tgz_md5)
    except BaseException:
        with contextlib.suppress(OSError):
            if archive in new and not check_integrity(archive, source.tgz_md5):
                archive.unlink(missing_ok=True)
            for folder in new[1:]:
                folder.rmdir()
        raise


def _files(source: Any) -> list[tuple[str, str]]:
    """Returns the names and MD5 sums of the files of a copy."""
    return [*map(tuple, source.train_list + source.test_list), (source.meta["filename"], source.meta["md5"])]


def _damaged(source: Any, root: Path) -> list[str]:
    """Returns the files of an existing copy, and the archive, that are missing or differ from their checksums."""
    from torchvision.datasets.utils import check_integrity

    base, archive = root / source.base_folder, root / source.filename
    damaged = []
    if base.is_dir():
        damaged = [name for name, md5 in _files(source) if not check_integrity(base / name, md5)]
    intact = base.is_dir() and not damaged
    if not intact and archive.exists() and not check_integrity(archive, source.tgz_md5):
        damaged.append(source.filename)
    return damaged


@contextlib.contextmanager
def downloading() -> Iterator[None]:
    """Sends torchvision's messages to stderr, and raises an error if the server does not answer in TIMEOUT seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _arrays(dataset: Any) -> Arrays:
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
    return Arrays(torch.from_numpy(images), torch.tensor(dataset.targets, dtype=torch.int64))
