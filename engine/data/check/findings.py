"""Findings about a source of images: errors and warnings, which training and the preflight report in the same words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engine.data.images import Facts
from engine.data.names import alike, differing, nfc, twins
from engine.tasks import ONE_LABEL, Task
from engine.wording import NAMED, counted, few
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

SMALL = 5  # a class with fewer training images is reported, because five folds could not have one each
Samples = Mapping[str, tuple[Sequence[Path], Tensor]]


@dataclass(frozen=True)
class Finding:
    """One finding about a source.

    Attributes:
        text: what was found.
        items: everything that it concerns, such as paths, in the form in which it is printed.
        fix: what to do, or empty.
        error: whether it prevents training; otherwise it is a warning.
    """

    text: str
    items: tuple[str, ...] = ()
    fix: str = ""
    error: bool = False

    def line(self) -> str:
        """Returns the finding on one line, with its first items."""
        return self.text + (f": {few(self.items)}" if self.items else "") + (f"; {self.fix}" if self.fix else "")


@dataclass
class Source:
    """Image files and their labels, before any image is decoded: what a dataset of files returns.

    Attributes:
        where: the beginning of its messages, such as "data.path = 'scenes'".
        classes: names, in the order of the labels.
        samples: for "train" and optionally "val" and "test", N files and labels, int64 (N,) or float32 (N, K).
        fix: the end of the error about images that cannot be read.
        unlabelled: images to predict.
        findings: errors and warnings so far; images that an error is about may be missing from `samples`.
        notes: remarks that need no action.
        task: what the labels mean.
    """

    where: str
    classes: list[str]
    samples: dict[str, tuple[list[Path], Tensor]]
    fix: str = "repair or delete them"
    unlabelled: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: Task = ONE_LABEL

    def report(self) -> None:
        """Logs every note and warning.

        Raises:
            UserError: the first error; the log contains the others, and all items of every error.
        """
        for note in self.notes:
            log.info("%s: %s", self.where, note)
        log_warnings(self.findings, self.where)
        errors = [finding for finding in self.findings if finding.error]
        for finding in errors:
            if len(finding.items) > NAMED or finding is not errors[0]:
                log.error("%s: %s", self.where, finding.text)
                for item in finding.items:
                    log.error("  %s", item)
        if errors:
            raise UserError(f"{self.where}: {errors[0].line()}")


def log_warnings(findings: Sequence[Finding], where: str) -> None:
    """Logs every warning, on one line each."""
    for finding in findings:
        if not finding.error:
            log.warning("%s: %s", where, finding.line())


def content_findings(
    samples: Samples, classes: list[str], facts: Sequence[Facts | None], digests: Sequence[bytes], task: Task
) -> list[Finding]:
    """Returns warnings about the contents of a source whose images have all been decoded.

    Args:
        samples: see Source.
        classes: names in the order of the labels.
        facts: facts about the images of all splits, one split after another; None for an image that cannot be read.
        digests: digests of their pixels, in the same order; those of images that cannot be read are ignored.
        task: what the labels mean.
    """
    paths = [path for files, _ in samples.values() for path in files]
    labels = [row for _, rows in samples.values() for row in rows.tolist()]
    first: dict[bytes, int] = {}
    contradictions = []
    for i, (path, label, image_facts, digest) in enumerate(zip(paths, labels, facts, digests, strict=True)):
        original = first.setdefault(digest, i) if image_facts else i
        if label != labels[original]:
            contradictions.append(f"{str(path)!r} = {str(paths[original])!r}")
    findings = []
    if contradictions:
        copies = counted(len(contradictions), "image is a copy of an image", "images are copies of images")
        findings.append(
            Finding(f"{copies} with another label", tuple(contradictions), "keep each once, where it belongs")
        )
    several = [repr(str(path)) for path, image_facts in zip(paths, facts) if image_facts and image_facts.several]
    if several:
        text = f"{counted(len(several), 'file holds', 'files hold')} more than one image; only the first is used"
        findings.append(Finding(text, tuple(several)))
    if same := tuple(map(differing, twins(map(str, paths)))):
        text = counted(len(same), "name is that of two files and differs", "names are those of two files and differ")
        text += " only in Unicode's form (NFC, NFD)"
        findings.append(Finding(text, same, "delete one of each pair if they are copies, otherwise rename it"))
    return findings + similar_names(classes) + small_classes(samples, classes, facts, task)


def similar_names(classes: Sequence[str]) -> list[Finding]:
    """Returns a warning about classes whose names differ only in case, blanks and characters that are not seen."""
    spellings: dict[str, dict[str, str]] = {}
    for name in classes:
        spellings.setdefault(alike(name), {})[nfc(name)] = repr(name)
    groups = [" and ".join(names.values()) for names in spellings.values() if len(names) > 1]
    if not groups:
        return []
    text = f"{counted(len(groups), 'class name is', 'class names are')} spelled in several ways"
    return [Finding(text, tuple(groups), "merge the folders or labels that are one class")]


def small_classes(samples: Samples, classes: list[str], facts: Sequence[Facts | None], task: Task) -> list[Finding]:
    """Returns a warning about classes with at least one but fewer than SMALL readable training images."""
    _, labels = samples["train"]
    if not task.one_class:
        return []
    counts = [0] * len(classes)
    for label, image_facts in zip(labels.tolist(), facts):  # "train" is the first split
        counts[label] += image_facts is not None
    small = [f"{name!r} ({count})" for name, count in zip(classes, counts) if 0 < count < SMALL]
    if not small:
        return []
    text = f"{counted(len(small), 'class has', 'classes have')} fewer than {SMALL} training images"
    return [Finding(text, tuple(small), "more images would make training and the measured accuracy more reliable")]


def copy_findings(samples: Samples, facts: Sequence[Facts | None], digests: Sequence[bytes]) -> list[Finding]:
    """Returns warnings about images with equal pixels; within a split, only about those with equal labels.

    Args:
        samples, facts, digests: as in content_findings; the labels of a split without labels are an empty tensor.
    """
    owners = [name for name, (files, _) in samples.items() for _ in files]
    labels = [row for files, rows in samples.values() for row in rows.tolist() or [None] * len(files)]
    paths = [path for files, _ in samples.values() for path in files]
    first: dict[bytes, int] = {}
    within: dict[str, list[str]] = {}
    across: dict[tuple[str, str], list[str]] = {}
    for i, (path, owner, image_facts, digest) in enumerate(zip(paths, owners, facts, digests, strict=True)):
        original = first.setdefault(digest, i) if image_facts else i
        if original != i:
            pair = f"{str(path)!r} = {str(paths[original])!r}"
            if owners[original] != owner:
                across.setdefault((owner, owners[original]), []).append(pair)
            elif labels[original] == labels[i]:
                within.setdefault(owner, []).append(pair)
    labelled = {name for name, (_, labels) in samples.items() if len(labels)}
    findings = []
    for split, pairs in within.items():
        fix = "a hold-out keeps copies together; delete those that should not count twice" if split in labelled else ""
        text = counted(len(pairs), f"{split} image is a copy of another", f"{split} images are copies of others")
        findings.append(Finding(text, tuple(pairs), fix))
    for (split, earlier), pairs in across.items():
        fix = "nothing to do: they are predicted like the others"
        if split in labelled:
            fix = "the accuracy measured there will be too high; delete one of each pair"
        one, many = f"{split} image is a copy of one of the", f"{split} images are copies of"
        findings.append(Finding(f"{counted(len(pairs), one, many)} {earlier} images", tuple(pairs), fix))
    return findings
