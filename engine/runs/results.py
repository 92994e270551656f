"""A run's results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.settings import UserError

RESULTS = "results.json"


def read_results(folder: Path) -> dict[str, Any] | None:
    """What a run's `results.json` holds; None where the run has not come to its end.

    Raises:
        UserError: it is damaged.
    """
    file = folder / RESULTS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: cannot be read; delete it and test the run again with --resume {folder}")
    return found
