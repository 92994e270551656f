"""The preflight (tools/data.py check): decodes a source of images as training would and collects all findings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data import DATASETS
from engine.data.arrays import digest_of
from engine.data.balance import advice, unequal_text
from engine.data.check.findings import Finding, Source, content_findings, copy_findings
from engine.data.images import Facts
from engine.data.names import on_disk
from engine.data.reading import by_training, lost_classes, read_each, repair_advice
from engine.data.settings import FileSettings
from engine.data.shards.layout import holds_shards
from engine.data.sources.kaggle import SAMPLE
from engine.data.sources.layout import named_splits
from engine.data.sources.scan import folders_in
from engine.wording import counted
from models.settings import UserError, check, nearest

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
UNLABELLED = "unlabelled"  # the name of the images without labels among the splits


@dataclass(frozen=True)
class Report:
    """The result of checking a source.

    Attributes:
        where: the beginning of its messages, such as "data.path = 'scenes'".
        classes: names, in the order of the labels.
        counts: for each split, the number of images of each class.
        images: the number of images in each split and, under UNLABELLED, of those to predict.
        facts: facts about every image that can be read.
        findings: errors first, then warnings.
        notes: remarks that need no action.
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
        """The findings that prevent training."""
        return [finding for finding in self.findings if finding.error]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that do not prevent training."""
        return [finding for finding in self.findings if not finding.error]


def kinds() -> list[str]:
    """Returns the datasets that can be checked: those of image files, in a folder or file named by `data.path`."""
    return [
        name
        for name, (settings, _) in DATASETS.items()
        if issubclass(settings, FileSettings) and "path" in settings.model_fields
    ]


def source_settings(path: str, kind: str | None = None, values: Mapping[str, Any] | None = None) -> FileSettings:
    """Returns the data settings with which a folder or table is checked.

    Args:
        path: the folder or table.
        kind: one of `kinds`; None: guessed from the path, see `kind_of`.
        values: other keys of `data`; `size` is 224 unless it is among them.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    kind = kind or kind_of(on_disk(Path(path).expanduser()))
    if kind not in kinds():
        raise UserError(f"--kind {kind}: not a dataset of image files in a path; {nearest(kind, kinds())}")
    return check(DATASETS[kind][0], {"size": 224, **(values or {}), "name": kind, "path": path}, "data")


def kind_of(path: Path) -> str:
    """Returns which of folder, csv, kaggle and shards a path looks like.

    Raises:
        UserError: a folder that cannot be read, or a file that is an archive.
    """
    if os.path.isfile(path):
        if path.suffix.lower() == ".npz":
            raise UserError(f"{path}: arrays, which are checked as training starts: data.name=npz data.path={path}")
        if path.suffix.lower() in ARCHIVES:
            raise UserError(f"{path}: an archive; unpack it, and give the folder or table that was in it")
        return "csv"
    if "{" in path.name or holds_shards(path):
        return "shards"
    splits = named_splits(path, f"data.path = {str(path)!r}") if os.path.isdir(path) else {}
    if "train" not in splits or not folders_in(splits["train"], str(path)):
        return "folder"
    if (path / SAMPLE).is_file():
        return "kaggle"
    with_labels = {split for split, folder in splits.items() if folders_in(folder, str(path))}
    return "kaggle" if "test" in splits and not with_labels & {"val", "test"} else "folder"


def check_source(settings: FileSettings) -> Report:
    """Decodes every image of a source as training does, without keeping it; writes nothing.

    Args:
        settings: settings of one of `kinds`, with the size at which images are compared.

    Raises:
        UserError: the source does not exist or has another layout, so that nothing can be checked.
    """
    source = DATASETS[settings.name][1](settings)
    paths = [path for files, _ in source.samples.values() for path in files]
    labelled = len(paths)
    paths += source.unlabelled
    digests: list[bytes] = [b""] * len(paths)
    facts: list[Facts | None] = [None] * len(paths)

    def keep(i: int, image: np.ndarray, image_facts: Facts) -> None:
        digests[i], facts[i] = digest_of(image), image_facts

    bad = read_each(paths, settings, keep)
    findings = [*source.findings, *_unreadable(source, paths, bad, settings)]
    findings += content_findings(source.samples, source.classes, facts[:labelled], digests[:labelled], source.task)
    every = dict(source.samples)
    if source.unlabelled:
        every[UNLABELLED] = (source.unlabelled, source.samples["train"][1][:0])  # no labels
    findings += copy_findings(every, facts, digests)
    return Report(
        source.where,
        source.classes,
        _counts(source),
        {name: len(files) for name, (files, _) in every.items()},
        [image_facts for image_facts in facts if image_facts],
        sorted(findings, key=lambda finding: not finding.error),
        [*source.notes, *_unequal(source)],
    )


def _unreadable(source: Source, paths: list[Path], bad: Mapping[int, str], settings: FileSettings) -> list[Finding]:
    """Returns findings about images that cannot be read: errors if training would stop, otherwise warnings."""

    train = source.samples["train"]
    labelled = sum(len(files) for files, _ in source.samples.values())
    of_splits = {i: why for i, why in bad.items() if i < labelled}
    to_predict = {i: why for i, why in bad.items() if i >= labelled}
    findings = []

    def add(noun: str, some: Mapping[int, str], fix: str, *, error: bool = False, left_out: bool = False) -> None:
        if some:
            items = tuple(f"{str(paths[i])!r} ({why})" for i, why in some.items())
            text = f"{noun} cannot be read"
            if left_out:
                text += " and is left out" if len(some) == 1 else " and are left out"
            findings.append(Finding(text, items, fix, error))

    if settings.on_error == "stop":
        fix = repair_advice(of_splits, source.fix, train[1], source.classes, settings, source.task)
        add(f"{len(of_splits)} of {labelled} images", of_splits, fix, error=True)
    else:
        skipped, others = by_training(of_splits, len(train[0]))
        if skipped and (loss := lost_classes(train[1], skipped, source.classes, source.task)):
            findings.append(Finding(loss, error=True))
        add(counted(len(skipped), "training image"), skipped, source.fix, left_out=True)
        add(counted(len(others), "validation or test image"), others, source.fix, error=True)
    add(counted(len(to_predict), "unlabelled image"), to_predict, "repair them before predicting")
    return findings


def _unequal(source: Source) -> list[str]:
    """Returns a note on classes of unequal size, if they are."""
    text = unequal_text(_counts(source)["train"], source.task)
    return [f"{text}; {advice(source.task)}"] if text else []


def _counts(source: Source) -> dict[str, list[int]]:
    classes = len(source.classes)
    return {split: source.task.counts(labels, classes).tolist() for split, (_, labels) in source.samples.items()}
