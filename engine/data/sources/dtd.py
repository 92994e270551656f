"""The Describable Textures Dataset (Cimpoi et al., 2014): 5,640 photographs of 47 textures, in ten official splits."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from engine.data.check.findings import Source
from engine.data.settings import DataPath, FileSettings
from engine.data.sources.cifar import FAILURES, downloading
from engine.wording import counted
from models.settings import UserError


class DtdSettings(FileSettings):
    """`root` is the folder with dtd/dtd, which holds images and labels; they are downloaded if missing."""

    published_classes: ClassVar[int] = 47

    name: Literal["dtd"] = "dtd"
    root: DataPath = Field("data", description="folder of the dataset, which is downloaded if it is missing")
    partition: int = Field(1, ge=1, le=10, description="which of the ten official splits")


def find_dtd(settings: DtdSettings) -> Source:
    """Finds the training, validation and test images of one official split, each with 40 of each class, by torchvision.

    Returns:
        Files and labels, int64 (N,), in the order of the split's own lists.

    Raises:
        UserError: the dataset is missing and cannot be downloaded, or is incomplete.
    """
    from torchvision.datasets import DTD  # slow to import, and not needed by other datasets

    root = Path(settings.root)
    where, home = f"data.root = {settings.root!r}", root / "dtd" / "dtd"
    fix = f"remove {home} to have it fetched again"
    try:
        if not home.is_dir():
            _fetch(DTD, root, home, where)
        sets = {split: DTD(str(root), split, settings.partition) for split in ("train", "val", "test")}
    except (*FAILURES, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if home.is_dir():
            raise UserError(f"{where}: dtd/dtd is damaged ({reason}); {fix}") from None
        raise UserError(
            f"{where}: no dtd/dtd there, and fetching it failed ({reason}); unpack {DTD._URL} in "
            f"{home.parent}, or use images of your own: data.name=folder data.path=DIR"
        ) from None
    classes = sets["train"].classes
    for split, images in sets.items():
        if images.classes != classes:
            raise UserError(
                f"{where}: labels/{split}{settings.partition}.txt lists {counted(len(images.classes), 'class')}, not "
                f"the {len(classes)} of the training images; {fix}"
            )
    samples = {split: (images._image_files, torch.tensor(images._labels)) for split, images in sets.items()}
    return Source(where, classes, samples, fix)


def _fetch(source: Any, root: Path, home: Path, where: str) -> None:
    """Downloads and unpacks the archive; after a failure removes all partial files except the archive."""
    for near in (root, root / "dtd"):
        if (near / "images").is_dir() and (near / "labels").is_dir():
            raise UserError(
                f"{where}: images and labels lie in {near}; torchvision looks for them in ROOT/dtd/dtd: move them there"
            )
    new = [path for path in (home.parent, root, *root.parents) if not path.exists()]
    try:
        with downloading():
            source(str(root), download=True)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)  # an incomplete folder would be taken for the whole dataset
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise
