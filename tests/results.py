"""Records of results for tests that train nothing."""

from __future__ import annotations

from typing import Any

from engine.runs.records.results import Results

# As the first version with a results.json wrote it.
FIRST_VERSION = {
    "name": "digits",
    "model": "hybrid",
    "data": "digits",
    "seed": 3,
    "test_images": 360,
    "test_loss": 0.25,
    "test_top1": 0.95,
    "test_top5": 1.0,
    "val_top1": None,
    "best_step": 60,
    "steps": 60,
    "epochs": 2,
    "train_images": 1437,
    "params": 12345,
    "gmacs": 0.001,
    "activations": 1000,
    "tokens": [14, 11],
    "removed": [3, 3],
    "seconds": 12.5,
    "images_per_second": 230.0,
    "peak_memory_mib": 300.5,
    "precision": "fp32",
    "device": "cpu",
    "versions": {"python": "3.12.0"},
    "commit": None,
    "finished": "2026-01-01T00:00:00+0000",
}


def results_of(**fields: Any) -> Results:
    """A whole record, with the given fields in place of its own."""
    record = {
        "name": "run",
        "model": "vit",
        "data": "digits",
        "seed": 0,
        "test_images": 100,
        "test_loss": 1.0,
        "test_metrics": {"top1": 0.5, "top5": 0.75},
        "best_step": 1,
        "steps": 2,
        "epochs": 1,
        "train_images": 20,
        "params": 2_000_000,
        "trained_params": 2_000_000,
        "gmacs": 0.5,
        "seconds": 10.0,
        "images_per_second": 100.0,
        "peak_memory_mib": 300.0,
    }
    return Results(**{**record, **fields})
