"""The dataset `kaggle`: a competition's folder of labelled images in class folders and unlabelled images to predict."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from engine.data.check.findings import Finding, Source
from engine.data.names import SPELLINGS, id_form, nfc, on_disk
from engine.data.settings import DataPath, FileSettings
from engine.data.sources.folder import as_samples, check_classes
from engine.data.sources.layout import named_splits, refuse_nested
from engine.data.sources.scan import Ignored, class_files, folders_in, image_files
from engine.data.tables.csv_files import read_table
from engine.wording import counted, few
from models.settings import UserError

LAYOUT = "expected PATH/train/LABEL/*.jpg, PATH/test/*.jpg, and optionally PATH/sample_submission.csv"
SAMPLE = "sample_submission.csv"


class KaggleSettings(FileSettings):
    """`path` is the folder; see find_kaggle for its layout."""

    name: Literal["kaggle"] = "kaggle"
    path: DataPath = Field(description="the folder with train, which has a folder for each label, and test")
    layout: Literal["auto", "classes"] = Field(
        "auto",
        description="classes: the folders in train are the labels, whatever they hold; auto: training asks if they "
        "hold folders of the same names",
    )


def find_kaggle(settings: KaggleSettings) -> Source:
    """Finds the labelled images in DIR/train/LABEL/**, as find_folder does, and those to predict in DIR/test.

    Both folders may be spelled in other ways, as in Training and Test_set.

    Images to predict have no labels and are not used in training, so the dataset has neither a test nor a validation
    set: these, or folds, are held out of train. A warning lists where the sample file differs from the folders.

    Returns:
        Files and labels, int64 (N,), in the order of sorted labels and file names. A label without images and a single
        label are among the findings.

    Raises:
        UserError: no such folder, no label folders in its train, or a folder that cannot be read.
    """
    root, where, ignored = on_disk(Path(settings.path)), f"data.path = {settings.path!r}", Ignored()
    if not os.path.isdir(root):
        raise UserError(f"{where}: {'is a file' if os.path.exists(root) else 'not found'}; {LAYOUT}")
    splits = named_splits(root, where)
    train, test = splits.get("train"), splits.get("test")
    if train is None:
        raise UserError(f"{where}: no folder train in it; {LAYOUT}")
    if not folders_in(train, where):
        raise UserError(f"{where}: no label folders in {train.name}; {LAYOUT}")
    by_class = class_files(train, where, ignored)
    if settings.layout == "auto":
        refuse_nested(by_class, train, root, where)
    classes = sorted(by_class, key=nfc)
    source = Source(where, classes, {"train": as_samples(by_class, classes)})
    source.findings += check_classes(by_class, LAYOUT)
    others = [repr(folder.name) for folder in folders_in(root, where) if folder not in (train, test)]
    if others:
        source.findings.append(Finding(f"only its folders train and test are used, not {few(others)}"))
    if test is not None:
        source.unlabelled = image_files(test, where, ignored)
        source.findings += _of_test(test, source, where)
    else:
        source.notes.append("no folder test: training needs none, and there is nothing to predict")
    source.findings += ignored.findings()
    if (root / SAMPLE).is_file():
        source.findings += _of_sample(root / SAMPLE, source, test)
    source.notes += ignored.notes()
    return source


def _of_test(test: Path, source: Source, where: str) -> list[Finding]:
    classes = set(map(nfc, source.classes))
    labelled = [repr(folder.name) for folder in folders_in(test, where) if nfc(folder.name) in classes]
    if labelled:
        return [
            Finding(
                "test has folders with the names of labels, but its images are treated as unlabelled",
                tuple(labelled),
                "if they have labels, set data.name=folder",
            )
        ]
    return [] if source.unlabelled else [Finding("no images in test: there is nothing to predict")]


def _of_sample(path: Path, source: Source, test: Path | None) -> list[Finding]:
    """Returns warnings about differences between the sample file and the folders."""
    try:
        table = read_table(path, repr(str(path)))
    except UserError as error:
        return [Finding(str(error))]
    findings, name = [], repr(path.name)
    ids = table.column(table.columns[0])
    if len(table.columns) == 2:
        labels = sorted(set(table.column(table.columns[1])) - {""})
        classes = set(map(nfc, source.classes))
        strange = tuple(repr(label) for label in labels if nfc(label) not in classes)
        if strange:
            findings.append(
                Finding(
                    f"{counted(len(strange), 'label')} in {name} not among the label folders",
                    strange,
                    "predictions use the names of the folders",
                )
            )
    if not source.unlabelled or test is None:
        return findings
    own = {image: PurePosixPath(image.relative_to(test)) for image in source.unlabelled}
    spellings = {image: {id_form(spell(path)) for spell in SPELLINGS.values()} for image, path in own.items()}
    names = set().union(*spellings.values())
    written = {cell: id_form(cell) for cell in ids}
    missing = tuple(repr(cell) for cell in ids if written[cell] not in names)
    if missing:
        findings.append(
            Finding(
                f"{len(missing)} of {len(ids)} ids in {name} have no image in test", missing, "they cannot be predicted"
            )
        )
    sample_ids = set(written.values())
    extra = tuple(repr(str(image)) for image, names in spellings.items() if not names & sample_ids)
    if extra:
        findings.append(
            Finding(
                f"{len(extra)} of {len(source.unlabelled)} test images are not in {name}",
                extra,
                "they need no predictions",
            )
        )
    return findings
