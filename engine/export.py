"""Exports the model of a finished run: checks the file on the run's own images and stores how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data import Data, Split
from engine.data.loading.loader import eval_batches
from engine.measure.evaluate import Evaluation, evaluate_logits
from engine.runs.restore import FinishedRun
from models.export import MOST_IMAGES, Agreement, export_model, load
from models.interface import merging_method, model_name, removed_per_block


def export_run(run: FinishedRun, to: str, path: Path, weights: str, *, int8: bool = False) -> Agreement:
    """Writes a run's model to a file, with its metadata, and checks the file on images of the run.

    Args:
        run: the run.
        to: "onnx", "openvino" or "exported".
        path: the file.
        weights: which checkpoint of the run was loaded, "best" or "last"; stored in the file.
        int8: quantize it, calibrated on training images of the run.

    Returns:
        How well the file agrees with the model.

    Raises:
        UserError: see `models.export.export_model`.
    """
    calibration = _spread(run.data, run.data.train, MOST_IMAGES) if int8 else None
    metadata = metadata_of(run, weights) | ({"precision": "int8"} if int8 else {})
    return export_model(run.model, to, path, sample_images(run.data), metadata, int8=calibration)


@torch.no_grad()
def scores(run: FinishedRun, path: Path) -> tuple[Evaluation, Evaluation]:
    """Measures a run's model and its exported file on all of its test images.

    Args:
        run: the run, with test images.
        path: the file.

    Returns:
        Of the model, in fp32 on the CPU, and of the file.
    """
    data, model, (runtime, _) = run.data, run.model.to("cpu", torch.float32).eval(), load(path)
    logits: list[list[Tensor]] = [[], []]
    for images, _ in eval_batches(data.test, 16, data.mean, data.std, data.resize):
        logits[0].append(model(images))
        logits[1].append(runtime(images))
    of_model, of_file = (evaluate_logits(torch.cat(parts), data.test.labels, data.task) for parts in logits)
    return of_model, of_file


def sample_images(data: Data, most: int = 64) -> Tensor:
    """Returns test images, or training images if there are none, spread over the split: normalised (n, C, H, W)."""
    return _spread(data, data.test if len(data.test) else data.train, most)


def _spread(data: Data, split: Split, most: int) -> Tensor:
    """Returns images spread over a split: normalised (n, C, H, W)."""
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
