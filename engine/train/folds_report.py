"""Reads the report on all folds, folds.json, and says whether it is the report on these folds."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.files import finite
from engine.runs.folder import RunFolder

log = logging.getLogger("hybridmerge")


class _Pair(BaseModel):
    classes: list[str] = Field(min_length=2, max_length=2)
    first_as_second: int = Field(ge=0)
    second_as_first: int = Field(ge=0)


class _Confusions(BaseModel):
    """The part of the report that was computed from the predictions of each image."""

    model_config = ConfigDict(strict=True)

    class_accuracy: dict[str, float | None]
    confused: list[_Pair]
    confusion: dict[str, dict[str, int]]


def read_report(run: RunFolder, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the content of folds.json; None if it does not exist, or is to be written again, which is logged.

    Args:
        run: the folder of all folds.
        expected: the part of the report that follows from the folds' results. The report of an older version may lack
            what is None or false here, and keys of single folds.
    """
    if not run.folds_file.is_file():
        return None
    expected = json.loads(json.dumps(finite(dict(expected))))  # tuples become lists
    try:
        report = json.loads(run.folds_file.read_text(encoding="utf-8"))
        if not _agrees(report, expected):
            log.warning("%s: not the report on the results of these folds; it is written again", run.folds_file)
            return None
        if expected["pooled"]:
            _Confusions.model_validate(report)
    except (OSError, ValueError, RecursionError, ValidationError):
        log.warning("%s: cannot be read; it is written again", run.folds_file)
        return None
    return report


def _agrees(report: Any, expected: Mapping[str, Any]) -> bool:
    if not isinstance(report, dict):
        return False
    folds = report.get("fold")
    alike = all(
        report[key] == value if key in report else not value for key, value in expected.items() if key != "fold"
    )
    return (
        alike
        and isinstance(folds, list)
        and len(folds) == len(expected["fold"])
        and all(_fold_agrees(fold, other) for fold, other in zip(folds, expected["fold"]))
    )


def _fold_agrees(fold: Any, expected: Mapping[str, Any]) -> bool:
    later = ("test_balanced_accuracy", "worst_class", "worst_class_score", "worst_class_images")
    return isinstance(fold, dict) and all(
        fold[key] == value if key in fold else key in later for key, value in expected.items()
    )
