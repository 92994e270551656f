"""Evaluates the rows of a comparison: the same model and images with every way of merging."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.cost.images import ImageCounter
from engine.cost.macs import measure_or_say
from engine.files import writing
from engine.machine import commit, device_name, pick_autocast, pick_device, to_device, versions
from engine.measure.evaluate import eval_mode
from engine.study.compare.budgets import budget_in_words
from engine.study.zeroshot.fingerprints import of_merging, of_values, of_weights
from engine.study.zeroshot.images import LabelledImages, batches, labelled_images
from engine.study.zeroshot.rows import GmacsSpread, ZeroshotRow, read_row, write_row
from engine.study.zeroshot.settings import Way, ZeroshotSettings
from engine.wording import NOT_COUNTED, counted
from models.merging import MERGERS, unwrap, wrap
from models.merging.schedule import fixed_removals
from models.merging.settings import MergeSettings
from models.merging.wrapping import schedule_of
from models.settings import UserError
from models.weights.load import load_with_classifier
from models.zoo import build_zoo

log = logging.getLogger("hybridmerge.zeroshot")


def pretrained(settings: ZeroshotSettings, device: torch.device) -> tuple[nn.Module, str]:
    """Returns the model without merging, with its weights loaded, and a fingerprint of these.

    Raises:
        UserError: the model cannot be built, or the weights cannot be found, or do not fit.
    """
    model = build_zoo(settings.model.model_copy(update={"merge": None}))
    assert settings.model.weights is not None
    report = load_with_classifier(model, settings.model.weights, f"model.weights = {settings.model.weights!r}")
    for caveat in report.caveats:
        log.warning(caveat)
    digest = of_weights(model.state_dict())
    return model.to(device).eval(), digest


def evaluate_rows(
    settings: ZeroshotSettings, folder: Path, report: Callable[[str], None] = print, *, again: bool = False
) -> tuple[LabelledImages, list[ZeroshotRow]]:
    """Evaluates every row that has not been evaluated yet.

    Args:
        settings: the comparison.
        folder: where rows are kept; it is created.
        report: called with a line for each row.
        again: whether to evaluate rows once more that another version of the merging code evaluated.

    Returns:
        The images and the rows, the unmerged one first.

    Raises:
        UserError: a budget that cannot be met, or a method that the model does not support, before anything is
            evaluated; or a file of an earlier row is damaged.
    """
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    ways = settings.ways()
    images = labelled_images(settings)
    keys = {name: _key(settings, weights, images, way) for name, way in ways.items()}
    found = {name: read_row(folder, key) for name, key in keys.items()}
    stale = [name for name, row in found.items() if row is not None and ways[name].merge and row.code != of_merging()]
    found.update(dict.fromkeys(stale) if again else {})
    missing = [name for name, row in found.items() if row is None]
    models = {size: at_size(settings, name, size, device) for name in missing if (size := ways[name].size) is not None}
    removed = {name: merged(models.get(ways[name].size, model), name, ways[name].merge) for name in missing}
    with writing(folder):
        (folder / "rows").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, way) in enumerate(ways.items(), 1):
        row = found[name]
        if row is None:
            row = _evaluated(settings, models.get(way.size, model), images, keys[name], name, way, removed[name])
            write_row(folder, row)
        rows.append(row.model_copy(update={"name": name}))
        right = (row.predictions == images.targets.numpy()).mean()
        report(f"{number}/{len(ways)}  {name}: {100 * right:.2f} %, {cost_in_words(row)}, {row.seconds:.0f} s")
    untrained = dict.fromkeys(way.merge.method for way in ways.values() if way.merge and learns(way.merge))
    if untrained:
        report(f"note: {', '.join(untrained)}: has to be trained; what it learns was drawn at random here")
    if stale and not again:
        rows_are = counted(len(stale), "row was", "rows were")
        report(f"note: {rows_are} evaluated by another version of models/merging; --again evaluates them anew")
    return images, rows


def at_size(settings: ZeroshotSettings, row: str, size: int, device: torch.device) -> nn.Module:
    """Returns the model without merging for images of another size, with its weights loaded.

    Raises:
        UserError: the model does not take such images, or has no weights for them.
    """
    try:
        return pretrained(settings.at(size), device)[0]
    except UserError as error:
        raise UserError(f"row {row!r} of {size} px: {error}") from None


def _key(settings: ZeroshotSettings, weights: str, images: LabelledImages, row: Way) -> str:
    """Returns a fingerprint of everything that decides a row's predictions, its name not included."""
    of_model = settings.model.model_dump(mode="json", exclude={"merge", "weights"})
    merge = row.merge
    way = None if merge is None else merge.model_dump(mode="json", exclude_defaults=True)
    values = of_model, weights, images.fingerprint, images.mean, images.std, settings.precision, way
    if merge is not None and merge.target_ms is not None:  # what is merged depends on how fast the machine is
        values = (*values, device_name(pick_device(settings.device)))
    if row.size is not None:
        values = (*values, row.size)
    return of_values(*values)


def _evaluated(
    settings: ZeroshotSettings,
    model: nn.Module,
    images: LabelledImages,
    key: str,
    name: str,
    way: Way,
    removed: list[int],
) -> ZeroshotRow:
    """Evaluates one row."""
    merge = way.merge
    images = images if way.size is None else replace(images, resize=way.size)
    start, device = time.perf_counter(), next(model.parameters()).device
    # The schedule is known: a budget is not solved once more.
    merged(model, name, solved(merge, removed))
    cost = measure_or_say(model)
    with ImageCounter(model) as counter:
        predicted = predictions(model, images, settings.batch_size, device, pick_autocast(settings.precision, device))
    costs = counter.costs()
    return ZeroshotRow(
        key=key,
        name=name,
        method=None if merge is None else merge.method,
        budget=None if merge is None else budget_in_words(merge),
        merge=None if merge is None else merge.model_dump(mode="json", exclude_defaults=True),
        removed=removed,
        gmacs=cost.gmacs if costs is None else costs.mean,
        gmacs_spread=None
        if costs is None
        else GmacsSpread(**{k: v for k, v in costs._asdict().items() if k != "mean"}),
        params=cost.params,
        predicted=predicted.tolist(),
        seconds=time.perf_counter() - start,
        device=device_name(device),
        versions=versions(),
        code=of_merging(),
        commit=commit(),
    )


def solved(merge: MergeSettings | None, removed: list[int]) -> MergeSettings | None:
    """Returns the settings with the schedule that they lead to in place of their budget, where there is one for all
    images."""
    return merge if merge is None or merge.per_image else merge.with_r(removed)


def merged(model: nn.Module, name: str, merge: MergeSettings | None) -> list[int]:
    """Puts a row's way of merging into the model, in place of the last one; returns the patches each block removes,
    nothing where it depends on the image.

    Raises:
        UserError: the model does not support it, or the budget cannot be met.
    """
    if (merge is None or learns(merge)) and _is_wrapped(model):
        unwrap(model)
    if merge is None:
        return []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of what is untrained
            wrap(model, **merge.model_dump(exclude_defaults=True))
    except UserError as error:
        raise UserError(f"row {name!r}: {error}") from None
    return fixed_removals(schedule_of(model))


def cost_in_words(row: ZeroshotRow) -> str:
    """Returns the GMACs of a row as text: of one image, or the mean of all with its spread."""
    if row.costs is not None:
        return row.costs.in_words()
    return NOT_COUNTED if row.gmacs is None else f"{row.gmacs:.4f} GMACs"


def learns(merge: MergeSettings) -> bool:
    """Returns whether a way of merging has to be trained."""
    return MERGERS[merge.method].learns


def _is_wrapped(model: nn.Module) -> bool:
    try:
        schedule_of(model)
    except UserError:
        return False
    return True


def predictions(
    model: nn.Module, images: LabelledImages, batch_size: int, device: torch.device, autocast: torch.autocast
) -> Tensor:
    """Returns the predicted class of every image, int64 (N,), on the CPU."""
    found = []
    with eval_mode(model):
        for batch, _ in batches(images, batch_size, device):
            with autocast:
                logits = model(to_device(batch, device))
            found.append(logits.float().argmax(dim=-1).cpu())
    return torch.cat(found)
