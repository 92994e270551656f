"""What the rows of a comparison say: accuracy, agreement, and which differences are more than noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import replacing, write_json_atomic, write_text_atomic
from engine.measure.intervals import wilson
from engine.measure.paired import Difference, holm, mcnemar, paired_bootstrap
from engine.study.zeroshot.images import LabelledImages
from engine.study.zeroshot.points import PREDICTIONS, RECORD, VERSION
from engine.study.zeroshot.rows import Row, ZeroshotRow
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import SEPARATOR, WaysSettings
from engine.tables import Column, markdown
from engine.wording import NOT_COUNTED, fixed

NONE = "-"
TIMES = [Column("ms per image"), Column("images/s"), Column("speed-up"), Column("over MAC ratio")]


@dataclass(frozen=True)
class Compared:
    """A row beside the unmerged model.

    Attributes:
        row: the row.
        accuracy: share of the images whose top-1 class is right.
        interval: its 95 % interval (Wilson).
        agreement: share of the images with the unmerged model's class; None for the unmerged model itself.
        difference: accuracy minus the unmerged model's, over the same images, with its bootstrap interval; likewise.
        p: McNemar's p-value, corrected for the number of rows (Holm, 1979); likewise.
        times: milliseconds per image of each timed round; empty: not timed.
    """

    row: ZeroshotRow
    accuracy: float
    interval: tuple[float, float]
    agreement: float | None
    difference: Difference | None
    p: float | None
    times: tuple[float, ...] = ()

    @property
    def ms(self) -> float | None:
        """Median milliseconds per image; None: not timed."""
        return float(np.median(self.times)) if self.times else None


def compared(
    images: LabelledImages, rows: Sequence[ZeroshotRow], times: Mapping[str, Sequence[float]] | None = None
) -> list[Compared]:
    """Compares every row with the first, which is the unmerged model.

    Args:
        images: the images.
        rows: the rows, the unmerged one first.
        times: milliseconds per image of each timed round, by the row's name.
    """
    targets, times = images.targets.numpy(), times or {}
    first, right = rows[0].predictions, [row.predictions == targets for row in rows]
    corrected = [None, *holm([mcnemar(other, right[0]).p for other in right[1:]])]
    return [
        Compared(
            row=row,
            accuracy=float(ours.mean()),
            interval=wilson(int(ours.sum()), len(ours)),
            agreement=None if p is None else float((row.predictions == first).mean()),
            difference=None if p is None else paired_bootstrap(ours, right[0]),
            p=p,
            times=tuple(times.get(row.name, ())),
        )
        for row, ours, p in zip(rows, right, corrected, strict=True)
    ]


def earlier_times(folder: Path, rows: Sequence[Row], name: str = RECORD) -> dict[str, list[float]]:
    """Returns the times that an earlier `--time` measured of these rows, by name, so that they are not lost.

    Args:
        folder: the folder of the comparison.
        rows: the rows.
        name: the name of the comparison's record.
    """
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
        times = {row["key"]: row["ms_per_image"] for row in record["rows"] if row["ms_per_image"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # there is no record, or none that has times
    return {row.name: times[row.key] for row in rows if row.key in times}


def table(rows: Sequence[Compared]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns and the cells of a comparison; times only where there are any."""
    timed = any(row.times for row in rows)
    columns = [
        Column("row", words=True),
        Column("GMACs"),
        Column("MAC ratio"),
        Column("top-1, %"),
        Column("difference, points"),
        Column("95 % interval"),
        Column("p (Holm)"),
        Column("agreement, %"),
        *(TIMES if timed else []),
    ]
    return columns, [_cells(row, rows[0], timed) for row in rows]


def _cells(row: Compared, first: Compared, timed: bool) -> list[str]:
    ratio = mac_ratio(row.row, first.row)
    cells = [
        row.row.name,
        gmacs_cell(row.row),
        NONE if ratio is None else f"{ratio:.3f}",
        f"{100 * row.accuracy:.2f}",
        *points(row.difference),
        NONE if row.p is None else f"{row.p:.2g}",
        NONE if row.agreement is None else f"{100 * row.agreement:.2f}",
    ]
    return [*cells, *time_cells(row.ms, first.ms, ratio)] if timed else cells


def gmacs_cell(row: Row) -> str:
    """GMACs of one image, or their mean over the images and its standard deviation."""
    if row.costs is not None:
        return row.costs.in_short()
    return NOT_COUNTED if row.gmacs is None else fixed(row.gmacs, 4)


def notes(rows: Sequence[Row]) -> list[str]:
    """Returns what a reader of the table has to know: where GMACs are means over images, and their spread."""
    return [f"{row.name}: {row.costs.in_words()}" for row in rows if row.costs is not None]


def as_text(columns: Sequence[Column], cells: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """Returns a table and the notes below it as Markdown."""
    lines = "".join(f"\n{note}  " for note in below)  # two spaces: a line of its own in Markdown
    return markdown(columns, cells) + "\n" + lines + ("\n" if below else "")


def mac_ratio(row: Row, first: Row) -> float | None:
    """Returns the multiply-adds of the first row divided by those of a row; None where they cannot be counted."""
    return first.gmacs / row.gmacs if row.gmacs and first.gmacs else None


def points(difference: Difference | None) -> list[str]:
    """Returns a difference of fractions and its interval, in points."""
    if difference is None:
        return [NONE, NONE]
    low, middle, high = (f"{100 * value:+.2f}" for value in (difference.low, difference.mean, difference.high))
    return [middle, f"{low} to {high}"]


def time_cells(ms: float | None, first: float | None, ratio: float | None) -> list[str]:
    """Returns the cells of TIMES.

    Args:
        ms: milliseconds per image; None: not timed.
        first: those of the unmerged model.
        ratio: `mac_ratio`.
    """
    gain = first / ms if ms and first else None
    return [
        NONE if ms is None else fixed(ms, 2),
        NONE if not ms else fixed(1e3 / ms, 1),
        NONE if gain is None else f"{gain:.3f}",
        NONE if gain is None or ratio is None else f"{gain / ratio:.3f}",
    ]


def record(settings: ZeroshotSettings, images: LabelledImages, rows: Sequence[Compared]) -> dict[str, Any]:
    """Returns what zeroshot.json holds: fractions, billions of multiply-adds, and milliseconds."""
    return {
        "version": VERSION,
        **of_comparison(settings, [row.row for row in rows]),
        "images": len(images.targets),
        "fingerprint": images.fingerprint,
        "rows": [_row_record(row) for row in rows],
    }


def of_comparison(settings: WaysSettings, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what the records of all comparisons say of their models and machines."""
    return {
        "name": settings.name,
        "model": f"{settings.model.name}:{settings.model.arch}",
        "weights": Path(settings.model.weights or "").name,  # of a file: without its folder
        "precision": settings.precision,
        "devices": list(dict.fromkeys(row.device for row in rows if row.device)),
        "versions": next((row.versions for row in reversed(rows) if row.versions), {}),
    }


def of_row(row: Row) -> dict[str, Any]:
    """Returns what the records of all comparisons say of a row."""
    given = row.model_dump(include={"name", "method", "budget", "merge", "removed", "gmacs", "params", "commit"})
    if row.gmacs_spread is not None:
        given["gmacs_spread"] = row.gmacs_spread.model_dump()
    return {"key": row.key, "line": row.name.partition(SEPARATOR)[0], **given}


def _row_record(row: Compared) -> dict[str, Any]:
    return {
        **of_row(row.row),
        "top1": row.accuracy,
        "top1_interval": row.interval,
        "agreement": row.agreement,
        "difference": row.difference and row.difference.mean,
        "difference_interval": row.difference and (row.difference.low, row.difference.high),
        "p_holm": row.p,
        "ms_per_image": list(row.times) or None,
    }


def write_outputs(folder: Path, settings: ZeroshotSettings, images: LabelledImages, rows: Sequence[Compared]) -> None:
    """Writes zeroshot.json, table.md, and predictions.npz: the predicted class of every image in every row.

    predictions.npz has `rows` (names), `images` (names), `targets` (N,) and `predicted` (rows, N).

    Raises:
        UserError: a file cannot be written.
    """
    write_json_atomic(folder / RECORD, record(settings, images, rows))
    write_text_atomic(folder / "table.md", as_text(*table(rows), notes([row.row for row in rows])))
    predicted = np.stack([row.row.predictions for row in rows])
    small = np.min_scalar_type(int(max(predicted.max(), images.targets.max())))
    with replacing(folder / PREDICTIONS) as file:
        np.savez_compressed(
            file,
            rows=np.array([row.row.name for row in rows]),
            images=np.array(images.names),
            targets=images.targets.numpy().astype(small),
            predicted=predicted.astype(small),
        )
