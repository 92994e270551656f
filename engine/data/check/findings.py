"""What is wrong or odd about a source of images: the same words before a training run and from the preflight."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from engine.data.images import Facts
from engine.tasks import ONE_LABEL, Task
from engine.wording import NAMED, few
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

SMALL = 5  # images of a class: with fewer, not each of five folds has one
Samples = Mapping[str, tuple[Sequence[Path], Tensor]]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a source: an error keeps training from starting, a warning does not.

    `items` are all that it is about, such as paths, each as it is to be printed; `fix` is what to do, or empty.
    """

    text: str
    items: tuple[str, ...] = ()
    fix: str = ""
    error: bool = False

    def line(self) -> str:
        """On one line, with the first items alone."""
        return self.text + (f": {few(self.items)}" if self.items else "") + (f"; {self.fix}" if self.fix else "")


@dataclass
class Source:
    """What the files of a source say before an image is decoded.

    `where` begins its messages ("data.path = 'scenes'") and `fix` ends the one about images that cannot be read.
    `samples` are files and labels, int64 (N,) or float32 (N, K), of "train" and perhaps "val" and "test"; `unlabelled`
    are images to predict. With errors among `findings` samples may lack what they are about. `notes` ask for nothing.
    `task` is what the labels mean.
    """

    where: str
    classes: list[str]
    samples: dict[str, tuple[list[Path], Tensor]]
    fix: str = "repair or delete them"
    unlabelled: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: Task = ONE_LABEL

    def tell(self) -> None:
        """Logs each note and each warning once.

        Raises:
            UserError: the first error; of the others, and of what they are about, each is named in the log.
        """
        for note in self.notes:
            log.info("%s: %s", self.where, note)
        tell(self.findings, self.where)
        errors = [finding for finding in self.findings if finding.error]
        for finding in errors:
            if len(finding.items) > NAMED or finding is not errors[0]:
                log.error("%s: %s", self.where, finding.text)
                for item in finding.items:
                    log.error("  %s", item)
        if errors:
            raise UserError(f"{self.where}: {errors[0].line()}")


def tell(findings: Sequence[Finding], where: str) -> None:
    """Logs each warning, on one line."""
    for finding in findings:
        if not finding.error:
            log.warning("%s: %s", where, finding.line())


def of_contents(
    samples: Samples, classes: list[str], facts: Sequence[Facts | None], digests: Sequence[bytes], task: Task
) -> list[Finding]:
    """What decoding all images of a source has brought to light, as warnings.

    Args:
        samples: see Source.
        classes: names in the order of the labels.
        facts: of the images of all splits, one after the other; None of one that cannot be read.
        digests: of their pixels, in the same order; those of images that cannot be read do not matter.
        task: what the labels mean.
    """
    paths = [path for files, _ in samples.values() for path in files]
    labels = [row for _, rows in samples.values() for row in rows.tolist()]
    first: dict[bytes, int] = {}
    astray = []
    for i, (path, label, known, digest) in enumerate(zip(paths, labels, facts, digests, strict=True)):
        original = first.setdefault(digest, i) if known else i
        if label != labels[original]:
            astray.append(f"{str(path)!r} = {str(paths[original])!r}")
    found = [
        Finding(
            f"{len(astray)} images are copies of images with another label",
            tuple(astray),
            "keep each once, where it belongs",
        )
    ] * bool(astray)
    several = [repr(str(path)) for path, known in zip(paths, facts) if known and known.several]
    if several:
        text = f"{len(several)} files hold more than one image, of which the first is used"
        found.append(Finding(text, tuple(several)))
    return found + alike(classes) + small_classes(samples, classes, facts, task)


def alike(classes: Sequence[str]) -> list[Finding]:
    """Names the classes that differ in nothing but case and blanks."""
    spellings: dict[str, list[str]] = {}
    for name in classes:
        spellings.setdefault("".join(name.casefold().split()), []).append(repr(name))
    found = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if not found:
        return []
    return [
        Finding(
            f"{len(found)} names of classes are spelled in several ways",
            tuple(found),
            "put the images of what is one class into one",
        )
    ]


def small_classes(samples: Samples, classes: list[str], facts: Sequence[Facts | None], task: Task) -> list[Finding]:
    """Names the classes with fewer than SMALL training images that can be read, but not those without any."""
    _, labels = samples["train"]
    if not task.one_class:
        return []
    counts = [0] * len(classes)
    for label, known in zip(labels.tolist(), facts):  # "train" is the first split
        counts[label] += known is not None
    small = [f"{name!r} ({count})" for name, count in zip(classes, counts) if 0 < count < SMALL]
    if not small:
        return []
    return [
        Finding(
            f"{len(small)} classes have fewer than {SMALL} training images",
            tuple(small),
            "more would make training and the measured accuracy surer",
        )
    ]


def copies(samples: Samples, facts: Sequence[Facts | None], digests: Sequence[bytes]) -> list[Finding]:
    """Images with equal pixels and, within a split, equal labels (see of_contents for others), as warnings.

    Arguments are as in of_contents; a split without labels has none for its files.
    """
    owners = [name for name, (files, _) in samples.items() for _ in files]
    labels = [row for files, rows in samples.values() for row in rows.tolist() or [None] * len(files)]
    paths = [path for files, _ in samples.values() for path in files]
    first: dict[bytes, int] = {}
    within: dict[str, list[str]] = {}
    across: dict[tuple[str, str], list[str]] = {}
    for i, (path, owner, known, digest) in enumerate(zip(paths, owners, facts, digests, strict=True)):
        original = first.setdefault(digest, i) if known else i
        if original != i:
            pair = f"{str(path)!r} = {str(paths[original])!r}"
            if owners[original] != owner:
                across.setdefault((owner, owners[original]), []).append(pair)
            elif labels[original] == labels[i]:
                within.setdefault(owner, []).append(pair)
    labelled = {name for name, (_, labels) in samples.items() if len(labels)}
    once = "a hold-out keeps copies together; delete those that should not count twice"
    apart = "what is measured there is better than the truth; delete one of each two"
    unlabelled = "nothing to do: they are predicted like the others"
    found = [
        Finding(f"{len(pairs)} {split} images are copies of others", tuple(pairs), once if split in labelled else "")
        for split, pairs in within.items()
    ]
    return found + [
        Finding(
            f"{len(pairs)} {split} images are copies of {earlier} images",
            tuple(pairs),
            apart if split in labelled else unlabelled,
        )
        for (split, earlier), pairs in across.items()
    ]
