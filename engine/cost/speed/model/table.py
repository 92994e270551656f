"""The table of a benchmark, computed from its record alone, as `tools/bench.py model --json` writes it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from engine.cost.speed.model.variants import UNMERGED
from engine.tables import Column
from engine.wording import NOT_COUNTED, fixed

Record = Mapping[str, Any]  # a row, as JSON has it
CONDITION = ("step", "batch_size", "runtime", "precision", "asked_attention", "device")
WORDS = (("method", "method"), ("step", "step"), ("batch_size", "batch"), ("runtime", "runtime"))
NAMES = (*WORDS, ("precision", "precision"), ("attention", "attention"), ("device", "device"))
MISSING = "-"


def gains(row: Record, rows: Sequence[Record]) -> list[float]:
    """Returns the realised speed-up in each round: the unmerged model's time over that of `row`.

    Args:
        row: the row of a model that merges.
        rows: all rows.

    Returns:
        Empty for an unmerged model, and where either was not timed.
    """
    if row["method"] == UNMERGED or row["failed"] or (other := _unmerged(row, rows)) is None or other["failed"]:
        return []
    return [before / after for before, after in zip(other["ms"], row["ms"], strict=True)]


def mac_ratio(row: Record, rows: Sequence[Record]) -> float | None:
    """Returns the MACs of the unmerged model over those of `row`; None if either is not counted, or `row` is it."""
    other = _unmerged(row, rows)
    if row["method"] == UNMERGED or other is None or not other["gmacs"] or not row["gmacs"]:
        return None
    return other["gmacs"] / row["gmacs"]


def quotient(row: Record, rows: Sequence[Record]) -> float | None:
    """Returns the median of the speed-up over the MAC ratio; None where either is not known."""
    ratio, realised = mac_ratio(row, rows), gains(row, rows)
    return statistics.median(realised) / ratio if ratio and realised else None


def share(row: Record) -> float | None:
    """Returns the part of the forward pass that matching and merging take, the median; None if it was not measured."""
    parts = [part / whole for part, whole in zip(row["merging_ms"], row["clocked_ms"], strict=True)]
    return statistics.median(parts) if parts else None


def table(rows: Sequence[Record]) -> tuple[list[Column], list[list[str]]]:
    """Returns the columns of a table and the cells of its rows; columns in which nothing stands are left out.

    Args:
        rows: the rows of a record.
    """
    columns = [Column(title, words=key != "batch_size") for key, title in NAMES]
    titles = ["ms (min to max)", "images/s", "steps/s", "GMACs", "MAC ratio", "speed-up (min to max)"]
    titles += ["speed-up over MAC ratio", "merging, %", "peak MiB"]
    columns += [Column(title) for title in titles]
    cells = [[*(str(row[key]) for key, _ in NAMES), *_numbers(row, rows)] for row in rows]
    kept = [i for i in range(len(columns)) if i < len(NAMES) or any(row[i] != MISSING for row in cells)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in cells]


def failures(rows: Sequence[Record]) -> list[str]:
    """Returns a line for each row that was not timed, or whose memory was not measured: which, and why."""
    return [
        f"{what}: {', '.join(str(row[key]) for key in ('method', *CONDITION[:-1]))}: {row[key_of_reason]}"
        for what, key_of_reason in (("not timed", "failed"), ("memory not measured", "peak_failed"))
        for row in rows
        if row[key_of_reason]
    ]


def spread(values: Sequence[float], decimals: int) -> str:
    """Returns the median, with the least and the greatest in parentheses; MISSING if there are none."""
    if not values:
        return MISSING
    median, low, high = (fixed(value, decimals) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


def _numbers(row: Record, rows: Sequence[Record]) -> list[str]:
    median = statistics.median(row["ms"]) if row["ms"] else None
    ratio, over, part = mac_ratio(row, rows), quotient(row, rows), share(row)
    return [
        spread(row["ms"], 2),
        _cell(median and 1e3 * row["batch_size"] / median, 1),
        _cell(median and 1e3 / median, 1),
        NOT_COUNTED if row["gmacs"] is None else fixed(row["gmacs"], 4),
        _cell(ratio, 3),
        spread(gains(row, rows), 3),
        _cell(over, 3),
        _cell(part and 100 * part, 2),
        _cell(row["peak_mib"], 0),
    ]


def _cell(value: float | None, decimals: int) -> str:
    return MISSING if value is None else fixed(value, decimals)


def _unmerged(row: Record, rows: Sequence[Record]) -> Record | None:
    """Returns the row of the unmerged model under the same conditions."""
    same = [other for other in rows if all(other[key] == row[key] for key in CONDITION)]
    return next((other for other in same if other["method"] == UNMERGED), None)
