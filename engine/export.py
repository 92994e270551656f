"""Exports the model of a finished run: checks the file on the run's own images and stores how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data import Data
from engine.data.loading.loader import eval_batches
from engine.runs.restore import FinishedRun
from models.export import Agreement, export_model
from models.interface import merging_method, model_name, removed_per_block


def export_run(run: FinishedRun, to: str, path: Path, weights: str) -> Agreement:
    """Writes a run's model to a file, with its metadata, and checks the file on images of the run.

    Args:
        run: the run.
        to: "onnx" or "exported".
        path: the file.
        weights: which checkpoint of the run was loaded, "best" or "last"; stored in the file.

    Returns:
        How well the file agrees with the model.

    Raises:
        UserError: see `models.export.export_model`.
    """
    return export_model(run.model, to, path, sample_images(run.data), metadata_of(run, weights))


def sample_images(data: Data, most: int = 64) -> Tensor:
    """Returns test images, or training images if there are none, spread over the split: normalised (n, C, H, W)."""
    split = data.test if len(data.test) else data.train
    arrays = split.take(torch.linspace(0, len(split) - 1, min(most, len(split))).long())
    images, _ = next(eval_batches(arrays, len(arrays), data.mean, data.std, data.resize))
    return images


def metadata_of(run: FinishedRun, weights: str) -> dict[str, Any]:
    """Returns the metadata for the exported file. Without merging, `method` is None and `removed` is empty."""
    data, model = run.data, run.settings.model
    return {
        "name": run.settings.name,
        "model": model_name(model),
        "weights": weights,
        "precision": "fp32",
        "method": merging_method(model),
        "removed": removed_per_block(run.model),
        "input": list(data.shape),
        "normalised": "(pixel / 255 - mean) / std, for each channel",
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": data.classes,
    }
