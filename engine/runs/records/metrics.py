"""Reads metrics.jsonl, of which any line may be damaged or incomplete."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def metrics_of(file: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl that can be read, in order; empty without such a file.

    Each has a whole number "step"; every other value is a finite number or None. Values of other kinds are left out.
    """
    if not file.is_file():
        return []
    rows = [_row(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [row for row in rows if row is not None]


def step_of(line: str) -> float:
    """Returns the step of a line; infinity for a line that kill -9 or a power failure left incomplete."""
    row = _row(line)
    return math.inf if row is None else row["step"]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**63:
        return None
    return {key: value for key, value in row.items() if value is None or _is_finite(value)}


def _is_finite(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is float and math.isfinite(value)
