"""Writes predictions to files: the submission, in the form of the sample, and the table of probabilities.

Every file is read back and validated before it takes its name; an existing file is kept until then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.names import differing, nfc, twins
from engine.data.tables.cells import guarded, number, quoted
from engine.data.tables.csv_files import read_table
from engine.files import demand_writable, replacing
from engine.submit.ensemble import Ensemble
from engine.submit.images import images_of, match, spelled
from engine.submit.joined import joint_of
from engine.submit.predict import Predictions
from engine.submit.sample import Sample, read_sample
from engine.submit.validate import Report, validate
from engine.wording import counted, few
from models.settings import UserError

log = logging.getLogger("hybridmerge")


@dataclass(frozen=True)
class TargetRows:
    """What to predict: the form of the submission, and the image file of each of its rows."""

    sample: Sample
    files: list[Path]


def target_rows(sources: Sequence[Path], sample: Path | None, *, ignore_extra: bool = False) -> TargetRows:
    """Finds the images to predict and the form of the submission.

    Args:
        sources: image files and folders of images.
        sample: the competition's sample file; None: columns ID and Label, and a row for each image in natural order.
        ignore_extra: whether to leave out images that the sample does not name, instead of raising an error.

    Raises:
        UserError: there are no images, the sample cannot be read as one, or its ids and the images do not match.
    """
    images = images_of(sources)
    names = list(images)
    if sample is None:
        return TargetRows(Sample("ID,Label", ["ID", "Label"], 0, names), list(images.values()))
    form = read_sample(sample, lambda cells: spelled(cells, names)[1])
    return TargetRows(form, [images[name] for name in match(form, names, sources, ignore_extra=ignore_extra)])


@dataclass(frozen=True)
class Outputs:
    """The files to write.

    Attributes:
        submission: CSV, in the sample's form.
        probabilities: CSV with the probability of every class, or None.
        top_k: number of most probable classes to write into `probabilities`; None: all classes.
        keep_formulas: whether cells that a spreadsheet would compute are written unchanged.
    """

    submission: Path
    probabilities: Path | None = None
    top_k: int | None = None
    keep_formulas: bool = False

    def check(self, sample: Path | None = None) -> None:
        """Raises a UserError, before anything is computed, if a file could not or should not be written."""
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: must be 1 or more")
        if self.top_k is not None and not self.probabilities:
            raise UserError(f"--top-k {self.top_k}: limits what --probabilities holds; give --probabilities FILE.csv")
        taken = {"--sample": sample}
        for option, path in (("--out", self.submission), ("--probabilities", self.probabilities)):
            if path is None:
                continue
            demand_writable(option, path, "submission.csv")
            if path.exists() and not _is_text(path):
                raise UserError(
                    f"{option} {path}: exists and is not a text file, so it is not replaced; give another name"
                )
            for other, file in taken.items():
                if file is not None and file.resolve() == path.resolve():
                    raise UserError(f"{option} {path}: is the file of {other}; give another")
            taken[option] = path

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises a UserError if `top_k` exceeds the number of classes."""
        if self.top_k is not None and self.top_k > len(classes):
            raise UserError(f"--top-k {self.top_k}: there are {len(classes)} classes; use that or less")


def _is_text(path: Path) -> bool:
    """Returns whether a file could be an older table, unlike an image, a checkpoint, a device or a pipe."""
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:
        return True  # the caller reports that it cannot be written


def written_names(sample: Sample, ensemble: Ensemble) -> tuple[list[str], list[str]]:
    """Returns the names of the ensemble's classes as the submission spells them, and notes for the user.

    Raises:
        UserError: the sample has a column neither for labels nor for the probability of each class.
    """
    sample.asks_for_probabilities(ensemble.classes, ensemble.task)
    spelling = sample.spelling(ensemble.classes, ensemble.task)
    other = [name for name in ensemble.classes if spelling[name] != name]
    notes = [f"{sample.where} has labels in two of Unicode's forms: {differing(same)}" for same in twins(sample.labels)]
    if other:
        example = f"{spelling[other[0]]!r} for {other[0]!r}"
        if nfc(spelling[other[0]]) == nfc(other[0]):
            example = f"{spelling[other[0]]!a} for {other[0]!a}, which look alike"
        notes.append(f"names are spelled as in {sample.where}, such as {example}")
    return [spelling[name] for name in ensemble.classes], notes


def write_submission(outputs: Outputs, sample: Sample, predictions: Predictions) -> tuple[str, list[str]]:
    """Writes the submission; returns a line that summarises it, and notes for the user.

    Args:
        outputs: the files to write.
        sample: the form of the submission.
        predictions: predictions for the sample's ids, in their order, with classes spelled as in the sample.

    Raises:
        UserError: see `write`.
    """
    notes: list[str] = []
    task = predictions.task
    if sample.asks_for_probabilities(predictions.classes, task):
        position = {name.strip(): i for i, name in enumerate(predictions.classes)}
        chosen = predictions.probabilities[:, [position[column] for column in sample.others]]
        rows = [[number(value) for value in row] for row in chosen.tolist()]
    else:
        joint = sample.joint(predictions.classes, task)
        rows = [[joint.join(names)] for names in predictions.names()]
        class_names = {nfc(name.strip()) for name in predictions.classes}
        strange = [label for label in sample.labels if label and nfc(label) not in class_names]
        if strange and task.one_class:
            notes.append(
                f"{sample.where} has labels such as {strange[0]!r}, which are not classes of the run; "
                f"the run's names are written, such as {predictions.classes[0]!r}"
            )
        if sample.labels and not task.one_class and joint_of(sample.labels, predictions.classes) is None:
            notes.append(f"labels are joined by {joint!r}, since no cell of {sample.where} shows what joins them")
    reports: list[Report] = []

    def check(path: Path) -> Report:
        report = validate(path, sample, predictions.classes, task, keep_formulas=outputs.keep_formulas)
        reports.append(report)
        return report

    write(outputs.submission, sample, rows, keep_formulas=outputs.keep_formulas, check=check)
    return f"{reports[-1].summary}; read back and valid", [*notes, *reports[-1].warnings]


def write_probabilities(outputs: Outputs, sample: Sample, predictions: Predictions) -> None:
    """Writes the probabilities: a column for each class, or the names and probabilities of the `top_k` best.

    Raises:
        UserError: see `write`.
    """
    assert outputs.probabilities is not None
    path, keep, ids = outputs.probabilities, outputs.keep_formulas, sample.columns[sample.ids_at]
    if outputs.top_k is None:
        form = Sample(str(path), [_unused(ids, predictions.classes), *predictions.classes], 0, sample.ids, numeric=True)
        rows = [[number(value) for value in row] for row in predictions.probabilities.tolist()]

        def check(written: Path) -> Report:
            return validate(written, form, predictions.classes, predictions.task, keep_formulas=keep)

        write(path, form, rows, keep_formulas=keep, check=check)
        return
    columns = [f"{what}{i + 1}" for i in range(outputs.top_k) for what in ("label", "probability")]
    rows = [[cell for name, value in row for cell in (name, number(value))] for row in predictions.top(outputs.top_k)]
    write(path, Sample(str(path), [_unused(ids, columns), *columns], 0, sample.ids), rows, keep_formulas=keep)


def _unused(header: str, columns: Sequence[str]) -> str:
    """Returns a header that differs from the columns."""
    while header in columns:
        header = f"{header}_"
    return header


def write(
    path: Path,
    sample: Sample,
    rows: Sequence[Sequence[str]],
    *,
    keep_formulas: bool = False,
    check: Callable[[Path], Report] | None = None,
) -> None:
    """Writes a table in the form of a sample, in UTF-8, with lines that end in a line feed.

    Args:
        path: the file, which may exist.
        sample: gives header, separator and ids.
        rows: the other cells of each id.
        keep_formulas: whether cells that a spreadsheet would compute are written unchanged.
        check: validates the whole file before it takes its name.

    Raises:
        UserError: the file cannot be written or differs from the rows when read back, or `check` finds problems; an
            existing file stays unchanged.
    """
    assert len(rows) == len(sample.ids)
    at = sample.ids_at
    cells = [sample.columns, *([*row[:at], name, *row[at:]] for name, row in zip(sample.ids, rows, strict=True))]
    formulas = sorted({repr(cell) for row in cells for cell in row if guarded(cell) != cell})
    if formulas:
        how = "unchanged (--formulas keep): do not open the file in a spreadsheet"
        if not keep_formulas:
            how = "with an apostrophe in front; a scorer that compares texts needs --formulas keep"
        log.warning(
            "%s: %s by a spreadsheet and %s %s: %s",
            path,
            counted(len(formulas), "text would be computed", "texts would be computed"),
            "is written" if len(formulas) == 1 else "are written",
            how,
            few(formulas),
        )
        if not keep_formulas:
            cells = [[guarded(cell) for cell in row] for row in cells]
    text = "".join(sample.separator.join(map(quoted, row)) + "\n" for row in cells)
    with replacing(path) as file:
        file.write(text.encode())
        file.flush()
        table = read_table(Path(file.name), str(path), strip=False, separator=sample.separator)
        if [table.columns, *table.rows] != cells:
            raise UserError(f"{path}: not written: its cells differ from the predictions when read back; this is a bug")
        if check is not None and (problems := check(Path(file.name)).problems):
            raise UserError(f"{path}: not written: {'; '.join(problems)}")
