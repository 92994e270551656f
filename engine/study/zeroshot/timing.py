"""Times the rows of a comparison against each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from engine.data.loading.loader import resized
from engine.machine import pick_autocast, pick_device, to_device
from engine.study.zeroshot.each import at_size, merged, pretrained, solved
from engine.study.zeroshot.images import LabelledImages, batches
from engine.study.zeroshot.rows import Row
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import WaysSettings
from models.timing import Times, time_models


def time_rows(settings: ZeroshotSettings, images: LabelledImages, rows: Sequence[Row], rounds: int) -> Times:
    """Measures the forward pass of every row on one batch of real images, in rounds (`time_models`).

    Args:
        settings: the comparison; its batch size, device, precision and threads are used.
        images: the images, of which the first batch is used.
        rows: the rows to time.
        rounds: timed calls of each row.

    Returns:
        Milliseconds per image, `rounds` for each row's name.
    """
    batch, _ = next(iter(batches(images, settings.batch_size, pick_device(settings.device))))
    return time_ways(settings, batch, rows, rounds)


def time_ways(
    settings: WaysSettings,
    batch: Tensor,
    rows: Sequence[Row],
    rounds: int,
    complete: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Times:
    """Measures every row on a batch, in rounds.

    Args:
        settings: the comparison; its device and precision are used.
        batch: normalised images (B, C, H, W) of the comparison's size.
        rows: the rows to time.
        rounds: timed calls of each row.
        complete: returns what is timed, from a model that merges.

    Returns:
        Milliseconds per image, `rounds` for each row's name.
    """
    device, ways = pick_device(settings.device), settings.ways()
    model, _ = pretrained(settings, device)
    batch = to_device(batch, device)
    models, inputs = {}, {}
    for row in rows:
        way = ways[row.name]
        own = _with_shared_weights(model) if way.size is None else at_size(settings, row.name, way.size, device)
        inputs[row.name] = resized(batch, way.size)
        merged(own, row.name, solved(way.merge, row.removed))
        models[row.name] = complete(own)
    times = time_models(models, inputs, rounds, device, pick_autocast(settings.precision, device))
    return {name: [taken / len(batch) for taken in values] for name, values in times.items()}


def _with_shared_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose parameters and buffers are those of the model."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
