"""The validation scores of a run, epoch by epoch. A search sees nothing else of its runs: never the test images."""

from __future__ import annotations

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from models.settings import UserError


def scores_of(run: RunFolder, metric: str) -> dict[int, float]:
    """Returns optimizer step -> score of each validation so far, fractions, in order."""
    rows = metrics_of(run.metrics_file)
    return {row["step"]: row[f"val/{metric}"] for row in rows if row.get(f"val/{metric}") is not None}


def final_score(run: RunFolder, metric: str) -> float:
    """Returns the score of the epoch whose weights a finished run kept.

    Raises:
        UserError: the run has no results, or was not validated.
    """
    results = run.read_results()
    if results is None:
        raise UserError(f"{run}: has no results")
    score = scores_of(run, metric).get(results.best_step)
    if score is None:
        raise UserError(f"{run}: was not validated by {metric}; give the search validation images, split.val")
    return score
