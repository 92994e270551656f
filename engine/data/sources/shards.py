"""The dataset `shards`: WebDataset's tar files, each with many images and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from engine.data.check.findings import Finding, Source
from engine.data.names import nfc
from engine.data.settings import DataPath, FileSettings
from engine.data.shards.layout import INDEX, Index, compared_with_index, find_shards, read_index
from engine.data.shards.members import read_shard
from engine.data.shards.samples import Sample, count_samples, read_samples
from engine.tasks import TASKS, Task
from engine.wording import counted
from models.settings import UserError

FIX = "repair them, and pack the shards again"


class ShardSettings(FileSettings):
    """`path` is a folder of shards; see find_in_shards."""

    name: Literal["shards"] = "shards"
    path: DataPath = Field(
        description="the folder of train-*.tar, val-*.tar and test-*.tar, or a pattern, DIR/train-{000000..000009}.tar"
    )
    labels: Literal["one", "many"] = Field(
        "one", description="one: each image has one label; many: a list of labels, in JSON"
    )
    label: str | None = Field(
        None,
        pattern=r"^[a-z0-9_.]{1,64}$",
        description="extension of the member with the label, a number, a name or JSON; null: cls, or else json",
    )
    label_key: str | None = Field(
        None, min_length=1, description="where the label is in that JSON; null: label, or else labels"
    )

    @property
    def task(self) -> Task:
        return TASKS[self.labels]


def find_in_shards(settings: ShardSettings) -> Source:
    """Finds the images in tar files as webdataset writes them: members of one sample are equal up to the first dot.

    A shard is of the split that its name says, as in train-000000.tar, or that of its folder; without such names all
    are to train on. Images are read at their offsets in any order, so that draws, resuming and sharing among processes
    are those of files. Only headers and labels are read here.

    Labels are numbers or names. The names of numbers are those in index.json, which `tools/data.py pack` writes;
    without it they are the numbers. Names are sorted, as those of folders are.

    Returns:
        Paths, TAR/MEMBER, and labels, int64 (N,) or float32 (N, K), in the order of the shards. Missing and damaged
        shards and images without a label are among the findings.

    Raises:
        UserError: there are no shards, or none with labelled images to train on.
    """
    where, root = f"data.path = {settings.path!r}", Path(settings.path)
    splits, gaps = find_shards(settings.path, where)
    samples: dict[str, list[Sample]] = {split: [] for split in splits}
    damaged, counts = [], {}
    for split, path in [(split, path) for split, paths in splits.items() for path in paths]:
        shard = read_shard(path)
        counts[path] = count_samples(shard)
        if shard.problem:
            damaged.append(f"{str(path)!r} ({shard.problem})")
        samples[split] += read_samples(path, shard, settings.label, settings.label_key)
    index = read_index(root) if root.is_dir() else None
    if damaged:
        text = counted(len(damaged), "shard is damaged", "shards are damaged")
        findings = [*gaps, Finding(text, tuple(damaged), "copy or pack them again", error=True)]
    else:
        findings = gaps if index is None else compared_with_index(index, root, counts)
    findings += _wrong(samples)
    good = {split: [sample for sample in found if sample.label is not None] for split, found in samples.items()}
    if not good["train"]:
        raise UserError(f"{where}: {_nothing(findings)}")
    classes = _classes(good, index, settings, where)
    labels = {split: _numbered(found, classes, settings, where) for split, found in good.items()}
    findings += _compared(labels, classes)
    pairs = {split: ([sample.path for sample in found], labels[split]) for split, found in good.items()}
    return Source(where, classes.names, pairs, FIX, findings=findings, task=settings.task)


def _nothing(findings: list[Finding]) -> str:
    """Returns why there is nothing to train on."""
    errors = [finding.line() for finding in findings if finding.error]
    return errors[0] if errors else "no images in the training shards; give shards that hold images"


def _wrong(samples: dict[str, list[Sample]]) -> list[Finding]:
    """Returns errors about images without a label, and about samples that are wrong otherwise."""
    every = [sample for found in samples.values() for sample in found if sample.label is None]
    bare = tuple(repr(str(sample.path)) for sample in every if not sample.problem)
    others = tuple(f"{str(sample.path)!r} ({sample.problem})" for sample in every if sample.problem)
    findings = []
    if bare:
        text = f"{counted(len(bare), 'image has', 'images have')} no label beside {'it' if len(bare) == 1 else 'them'}"
        findings.append(Finding(text, bare, "data.label says which extension labels have, such as json", error=True))
    if others:
        text = counted(len(others), "sample is", "samples are")
        findings.append(Finding(f"{text} not an image and its label", others, "pack them again", error=True))
    return findings


class _Classes(NamedTuple):
    """The names of the classes, and what stands for each in a shard: its number, or its name in NFC."""

    names: list[str]
    numbers: dict[int | str, int]


def _entries(sample: Sample) -> list[int] | list[str]:
    return sample.label if isinstance(sample.label, list) else [sample.label]


def _classes(samples: dict[str, list[Sample]], index: Index | None, settings: ShardSettings, where: str) -> _Classes:
    """Returns the classes: those of the index, or those of the training images.

    Raises:
        UserError: numbers and names are mixed, or the index is of the other kind of labels.
    """
    if index is not None and index.labels != settings.labels:
        raise UserError(f"{where}: data.labels = {settings.labels!r}: packed with {index.labels}; set it to that")
    kinds = {type(entry) for found in samples.values() for sample in found for entry in _entries(sample)}
    if len(kinds) > 1:
        raise UserError(f"{where}: some labels are numbers, others are names; write all in one way")
    if index is not None:
        names = index.classes
    elif kinds == {int}:
        most = max((entry for sample in samples["train"] for entry in _entries(sample)), default=-1)
        names = [str(number) for number in range(most + 1)]
    else:
        spelling: dict[str, str] = {}
        for sample in samples["train"]:
            for entry in _entries(sample):
                spelling.setdefault(nfc(str(entry)), str(entry))
        names = [spelling[key] for key in sorted(spelling)]
    by_key: dict[int | str, int] = {nfc(name): number for number, name in enumerate(names)}
    return _Classes(names, {number: number for number in range(len(names))} if kinds == {int} else by_key)


def _numbered(samples: list[Sample], classes: _Classes, settings: ShardSettings, where: str) -> Tensor:
    """Returns the labels of images, int64 (N,) or float32 (N, K).

    Raises:
        UserError: a label is of no class, or an image has several where it should have one.
    """
    rows = []
    for sample in samples:
        entries = _entries(sample)
        if settings.labels == "one" and len(entries) != 1:
            raise UserError(f"{where}: {sample.path}: {counted(len(entries), 'label')}; set data.labels=many")
        numbers = [classes.numbers.get(nfc(entry) if isinstance(entry, str) else entry) for entry in entries]
        if None in numbers:
            known = f"one of {INDEX} or of the training images, {counted(len(classes.names), 'class')}"
            raise UserError(f"{where}: {sample.path}: the label {entries[numbers.index(None)]!r} is not {known}")
        rows.append(numbers)
    if settings.labels == "one":
        return torch.tensor([row[0] for row in rows], dtype=torch.int64)
    labels = torch.zeros(len(rows), len(classes.names))
    for i, row in enumerate(rows):
        labels[i, row] = 1
    return labels


def _compared(labels: dict[str, Tensor], classes: _Classes) -> list[Finding]:
    """Returns an error about a single class, or a warning about classes without training images."""
    if len(classes.names) == 1:
        return [Finding(f"a single class, {classes.names[0]!r}", fix="a classifier needs two or more", error=True)]
    if labels["train"].ndim == 2:
        empty = labels["train"].sum(0) == 0
    else:
        empty = torch.bincount(labels["train"], minlength=len(classes.names)) == 0
    bare = tuple(repr(name) for name, none in zip(classes.names, empty.tolist(), strict=True) if none)
    text = f"{counted(len(bare), 'class has', 'classes have')} no training images"
    return [Finding(text, bare, "add shards that have some")] if bare else []
