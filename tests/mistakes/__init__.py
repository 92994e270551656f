"""What users get wrong, and what they see: one table, which is tested, and from which docs/errors.md is written.

Each module here holds the mistakes of one subject in its `MISTAKES`, in the order of the document.
"""

from __future__ import annotations

from tests.mistakes import (
    comparing,
    data,
    explaining,
    running,
    runs,
    segmenting,
    settings,
    speed,
    studies,
    submissions,
    tables,
    weights,
    zeroshot,
)
from tests.mistakes.mistake import Mistake

SECTIONS: dict[str, list[Mistake]] = {
    "Settings and overrides": settings.MISTAKES,
    "Folders and image files": data.MISTAKES,
    "Tables, names and labels": tables.MISTAKES,
    "Weights and models": weights.MISTAKES,
    "Run folders and checkpoints": runs.MISTAKES,
    "While a run is running": running.MISTAKES,
    "Studies": studies.MISTAKES,
    "Predictions and submissions": submissions.MISTAKES,
    "Explanations": explaining.MISTAKES,
    "Comparisons": comparing.MISTAKES,
    "Speed": speed.MISTAKES,
    "Merging in a pretrained model": zeroshot.MISTAKES,
    "Segmentation": segmenting.MISTAKES,
}
