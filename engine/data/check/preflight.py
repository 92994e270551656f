"""What training would say about a source of images, and what else is worth knowing, all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data import DATASETS
from engine.data.arrays import digest_of
from engine.data.check.findings import Finding, Source, copies, of_contents
from engine.data.images import Facts
from engine.data.reading import all_lost, parted, read_each, repair
from engine.data.settings import FileSettings
from engine.data.sources.folder import folders_in
from engine.data.sources.kaggle import SAMPLE
from models.settings import UserError, check, nearest

UNLABELLED = "unlabelled"  # the name of the images without labels among the splits


@dataclass(frozen=True)
class Report:
    """A source, looked at.

    `where` begins its messages; `counts` are the images of each class, of each label where images have many, in each
    split; `images` is how many there are in each split, those to predict among them; `facts` are of every image that
    can be read. `notes` ask for nothing.
    """

    where: str
    classes: list[str]
    counts: dict[str, list[int]]
    images: dict[str, int]
    facts: list[Facts]
    findings: list[Finding]
    notes: list[str]

    @property
    def errors(self) -> list[Finding]:
        """What keeps training from starting."""
        return [finding for finding in self.findings if finding.error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.error]


def kinds() -> list[str]:
    """Returns the datasets that can be checked: those of image files, in a folder or file named by `data.path`."""
    return [
        name
        for name, (settings, _) in DATASETS.items()
        if issubclass(settings, FileSettings) and "path" in settings.model_fields
    ]


def source_settings(path: str, kind: str | None = None, values: Mapping[str, Any] | None = None) -> FileSettings:
    """Returns the data settings by which a folder or table is checked.

    Args:
        path: the folder or table.
        kind: one of `kinds`; None: what the path looks like.
        values: other keys of `data`; the size is 224 unless it is among them.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    kind = kind or kind_of(Path(path).expanduser())
    if kind not in kinds():
        raise UserError(f"--kind {kind}: not a dataset of image files in a path; {nearest(kind, kinds())}")
    return check(DATASETS[kind][0], {"size": 224, **(values or {}), "name": kind, "path": path}, "data")


def kind_of(path: Path) -> str:
    """Returns which of folder, csv and kaggle a path looks like.

    Raises:
        UserError: a folder that cannot be read.
    """
    if os.path.isfile(path):
        return "csv"
    train, test = path / "train", path / "test"
    if not os.path.isdir(train):
        return "folder"
    flat = test.is_dir() and not folders_in(test, str(path))
    return "kaggle" if flat or (path / SAMPLE).is_file() else "folder"


def check_source(settings: FileSettings) -> Report:
    """Finds and decodes every image of a source as training does, without keeping any; writes nothing.

    Args:
        settings: of one of `kinds`, with a size, at which images are compared.

    Raises:
        UserError: a source of which nothing can be said: not there, or of another layout.
    """
    source = DATASETS[settings.name][1](settings)
    paths = [path for files, _ in source.samples.values() for path in files]
    labelled = len(paths)
    paths += source.unlabelled
    digests: list[bytes] = [b""] * len(paths)
    facts: list[Facts | None] = [None] * len(paths)

    def keep(i: int, image: np.ndarray, known: Facts) -> None:
        digests[i], facts[i] = digest_of(image), known

    bad = read_each(paths, settings, keep)
    findings = [*source.findings, *_of_bad(source, paths, bad, settings)]
    findings += of_contents(source.samples, source.classes, facts[:labelled], digests[:labelled], source.task)
    every = dict(source.samples)
    if source.unlabelled:
        every[UNLABELLED] = (source.unlabelled, source.samples["train"][1][:0])  # no labels
    findings += copies(every, facts, digests)
    return Report(
        source.where,
        source.classes,
        _counts(source),
        {name: len(files) for name, (files, _) in every.items()},
        [known for known in facts if known],
        sorted(findings, key=lambda finding: not finding.error),
        source.notes,
    )


def _of_bad(source: Source, paths: list[Path], bad: Mapping[int, str], settings: FileSettings) -> list[Finding]:
    """Images that cannot be read: errors where training would stop for them."""

    def finding(text: str, some: Mapping[int, str], fix: str, error: bool = False) -> list[Finding]:
        items = tuple(f"{str(paths[i])!r} ({why})" for i, why in some.items())
        return [Finding(f"{len(some)} {text}", items, fix, error)] * bool(some)

    train = source.samples["train"]
    labelled = sum(len(files) for files, _ in source.samples.values())
    told = {i: why for i, why in bad.items() if i < labelled}
    found = finding(
        "unlabelled images cannot be read",
        {i: why for i, why in bad.items() if i >= labelled},
        "repair them before predicting",
    )
    if settings.on_error == "stop":
        fix = repair(told, source.fix, train[1], source.classes, settings, source.task)
        return finding(f"of {labelled} images cannot be read", told, fix, error=True) + found
    skipped, others = parted(told, len(train[0]))
    if skipped and (said := all_lost(train[1], skipped, source.classes, source.task)):
        found.append(Finding(said, error=True))
    found += finding("training images cannot be read and are left out", skipped, source.fix)
    return found + finding("validation or test images cannot be read", others, source.fix, error=True)


def _counts(source: Source) -> dict[str, list[int]]:
    classes = len(source.classes)
    return {split: source.task.counts(labels, classes).tolist() for split, (_, labels) in source.samples.items()}
