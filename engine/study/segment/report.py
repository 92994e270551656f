"""What the rows of a comparison say: mean intersection over union, pixel accuracy, and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from engine.figures.drawing import save_figure
from engine.files import replacing, write_json_atomic, write_text_atomic
from engine.measure.paired import Difference
from engine.measure.segmentation import class_ious, mean_iou, paired_images, pixel_accuracy
from engine.study.segment.picture import draw_masks
from engine.study.segment.rows import SegmentRow
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.subject import Subject
from engine.study.zeroshot.report import (
    NONE,
    TIMES,
    as_text,
    gmacs_cell,
    mac_ratio,
    notes,
    of_comparison,
    of_row,
    points,
    time_cells,
)
from engine.tables import Column
from engine.wording import counted

RECORD, COUNTS, PICTURE = "segment.json", "counts.npz", "masks.png"  # files in the folder of tools/segment.py
VERSION = 1  # of segment.json


@dataclass(frozen=True)
class Compared:
    """A row beside the unmerged model.

    Attributes:
        row: the row.
        miou: mean intersection over union of all test images.
        accuracy: share of their pixels that are predicted right.
        difference: mIoU minus the unmerged model's, with its bootstrap interval over images; None for that model.
        difference_of_accuracy: the same of the pixel accuracy.
        times: milliseconds per image of each timed round; empty: not timed.
    """

    row: SegmentRow
    miou: float
    accuracy: float
    difference: Difference | None
    difference_of_accuracy: Difference | None
    times: tuple[float, ...] = ()

    @property
    def ms(self) -> float | None:
        """Median milliseconds per image; None: not timed."""
        return median(self.times) if self.times else None


def compared(rows: Sequence[SegmentRow], times: Mapping[str, Sequence[float]]) -> list[Compared]:
    """Compares every row with the first, which is the unmerged model.

    Args:
        rows: the rows, the unmerged one first.
        times: milliseconds per image of each timed round, by the row's name.
    """
    first, answer = rows[0].counts, []
    for row in rows:
        own, other = row.counts, row is not rows[0]
        differences = [paired_images(score, own, first) if other else None for score in (mean_iou, pixel_accuracy)]
        miou, accuracy = float(mean_iou(own.sum(0))), float(pixel_accuracy(own.sum(0)))
        answer.append(Compared(row, miou, accuracy, *differences, tuple(times.get(row.name, ()))))
    return answer


def table(rows: Sequence[Compared]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of a comparison; times only where there are any."""
    timed = any(row.times for row in rows)
    columns = [
        Column("row", words=True),
        Column("GMACs"),
        Column("MAC ratio"),
        Column("mIoU, %"),
        Column("difference, points"),
        Column("95 % interval"),
        Column("pixels, %"),
        Column("difference, points"),
        Column("95 % interval"),
        *(TIMES if timed else []),
    ]
    return columns, [_cells(row, rows[0], timed) for row in rows]


def _cells(row: Compared, first: Compared, timed: bool) -> list[str]:
    ratio = mac_ratio(row.row, first.row)
    cells = [
        row.row.name,
        gmacs_cell(row.row),
        NONE if ratio is None else f"{ratio:.3f}",
        f"{100 * row.miou:.2f}",
        *points(row.difference),
        f"{100 * row.accuracy:.2f}",
        *points(row.difference_of_accuracy),
    ]
    return [*cells, *time_cells(row.ms, first.ms, ratio)] if timed else cells


def record(settings: SegmentSettings, subject: Subject, rows: Sequence[Compared]) -> dict[str, Any]:
    """Returns what segment.json holds: fractions, billions of multiply-adds, and milliseconds."""
    data = settings.data.model_dump(mode="json", exclude={"path"})  # which is a path of this machine
    return {
        "version": VERSION,
        **of_comparison(settings, [row.row for row in rows]),
        "data": data,
        "probe": settings.probe.model_dump(mode="json"),
        "classes": subject.images.classes,
        "train_images": len(subject.images.train),
        "images": len(subject.images.test),
        "fingerprint": subject.fingerprint,
        "rows": [_row_record(row) for row in rows],
    }


def _row_record(row: Compared) -> dict[str, Any]:
    ious = class_ious(row.row.counts.sum(0))
    return {
        **of_row(row.row),
        "miou": row.miou,
        "class_ious": [None if np.isnan(value) else float(value) for value in ious],
        "pixel_accuracy": row.accuracy,
        "difference": row.difference and row.difference.mean,
        "difference_interval": row.difference and (row.difference.low, row.difference.high),
        "accuracy_difference": row.difference_of_accuracy and row.difference_of_accuracy.mean,
        "accuracy_interval": row.difference_of_accuracy
        and (row.difference_of_accuracy.low, row.difference_of_accuracy.high),
        "ms_per_image": list(row.times) or None,
    }


def write_outputs(folder: Path, settings: SegmentSettings, subject: Subject, rows: Sequence[Compared]) -> None:
    """Writes segment.json, table.md, masks.png, and counts.npz: what was counted in every image in every row.

    counts.npz has `rows` (names), `images` (names), `classes` (names) and `counts` (rows, N, 3, classes): pixels that
    are rightly predicted, predicted and labelled.

    Raises:
        UserError: a file cannot be written.
    """
    write_json_atomic(folder / RECORD, record(settings, subject, rows))
    write_text_atomic(folder / "table.md", as_text(*table(rows), notes([row.row for row in rows])))
    counts = np.stack([row.row.counts for row in rows])
    with replacing(folder / COUNTS) as file:
        np.savez_compressed(
            file,
            rows=np.array([row.row.name for row in rows]),
            images=np.array(subject.images.test.names),
            classes=np.array(subject.images.classes),
            counts=counts.astype(np.min_scalar_type(int(counts.max()))),
        )
    save_figure(draw_masks(subject.images, [row.row for row in rows]), folder / PICTURE)


def undrawn(rows: Sequence[SegmentRow]) -> list[str]:
    """Returns a note if there are rows that cannot be drawn."""
    count = sum(not row.shown for row in rows)
    are = counted(count, "row was", "rows were")
    return [f"note: {are} evaluated before masks were kept, and not drawn; out=FOLDER evaluates anew"] if count else []
