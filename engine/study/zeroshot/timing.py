"""Times the rows of a comparison against each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from engine.data.loading.loader import resized
from engine.machine import pick_autocast, pick_device, to_device
from engine.study.zeroshot.evaluate import at_size, merged, pretrained, solved
from engine.study.zeroshot.images import LabelledImages, batches
from engine.study.zeroshot.rows import ZeroshotRow
from engine.study.zeroshot.settings import ZeroshotSettings
from models.timing import Times, time_models


def time_rows(settings: ZeroshotSettings, images: LabelledImages, rows: Sequence[ZeroshotRow], rounds: int) -> Times:
    """Measures the forward pass of every row on one batch of real images, in rounds (`time_models`).

    Args:
        settings: the comparison; its batch size, device, precision and threads are used.
        images: the images, of which the first batch is used.
        rows: the rows to time.
        rounds: timed calls of each row.

    Returns:
        Milliseconds per image, `rounds` for each row's name.
    """
    device = pick_device(settings.device)
    model, _ = pretrained(settings, device)
    ways = settings.ways()
    batch = to_device(next(iter(batches(images, settings.batch_size, device)))[0], device)
    models, inputs = {}, {}
    for row in rows:
        way = ways[row.name]
        models[row.name] = (
            _with_shared_weights(model) if way.size is None else at_size(settings, row.name, way.size, device)
        )
        inputs[row.name] = resized(batch, way.size)
        merged(models[row.name], row.name, solved(way.merge, row.removed))
    times = time_models(models, inputs, rounds, device, pick_autocast(settings.precision, device))
    return {name: [taken / len(batch) for taken in values] for name, values in times.items()}


def _with_shared_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose parameters and buffers are those of the model."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
