"""The rows of tools/zeroshot.py as points of a comparison, so that they share tables and figures with runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy as np

from engine.study.points import Outcome, Point
from engine.study.table import Skip
from models.settings import UserError

RECORD, PREDICTIONS = "zeroshot.json", "predictions.npz"  # files in the folder of tools/zeroshot.py
VERSION = 1  # of zeroshot.json
ONCE = "once"  # the only repetition: nothing is trained


def is_zeroshot(path: Path) -> bool:
    """Returns whether a folder was written by tools/zeroshot.py."""
    return (path / RECORD).is_file()


def points_of_zeroshot(folders: Sequence[Path], skip: Skip) -> list[Point]:
    """Returns a point for each row of each folder.

    Args:
        folders: written by tools/zeroshot.py.
        skip: called with a folder that cannot be read, which is then left out; it may raise the error instead.
    """
    points: list[Point] = []
    for folder in folders:
        try:
            points += _points(folder, json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except UserError as error:
            skip(folder, error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skip(folder, _damaged(folder, error))
    return points


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{folder / RECORD}: damaged ({reason}); run tools/zeroshot.py again, which writes it anew")


def _points(folder: Path, record: Mapping[str, Any]) -> list[Point]:
    if record["version"] > VERSION:
        raise UserError(f"{folder / RECORD}: of a newer version of this program; update it")
    return [_point(folder, record, row, number) for number, row in enumerate(record["rows"])]


def _point(folder: Path, record: Mapping[str, Any], row: Mapping[str, Any], number: int) -> Point:
    merged, times = row["method"] is not None, row["ms_per_image"]
    name = f"{record['name']}, {row['name']}"
    return Point(
        name=name,
        model=record["model"],
        method=row["line"] if merged else None,
        budget=row["budget"],
        metric="top1",
        scores={ONCE: float(row["top1"])},
        costs={"gmacs": row["gmacs"], "ms": median(times) if times else None, "params_m": row["params"] / 1e6},
        line=f"{record['name']}, {row['line']}" if merged else None,
        images=int(record["images"]),
        outcomes={ONCE: partial(_outcome, folder, number, row["name"])},
        extra={"agreement with unmerged, %": 100 * row["agreement"] if merged else None},
    )


def _outcome(folder: Path, number: int, name: str) -> Outcome:
    """Reads which images a row predicts right."""
    try:
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            if str(arrays["rows"][number]) != name:
                _mismatch(folder)
            right = arrays["predicted"][number] == arrays["targets"]
            return Outcome(tuple(map(str, arrays["images"])), right)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise _damaged(folder, error) from None


def _mismatch(folder: Path) -> NoReturn:
    raise ValueError(f"{PREDICTIONS} has other rows")
