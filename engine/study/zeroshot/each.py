"""Puts every way of merging of a comparison into its pretrained model, and evaluates those rows that are missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from engine.files import writing
from engine.machine import commit, device_name, pick_device, versions
from engine.runs.folder import RunFolder
from engine.study.compare.budgets import budget_in_words
from engine.study.zeroshot.fingerprints import of_merging, of_values, of_weights
from engine.study.zeroshot.rows import Row, cost_in_words, read_row, write_row
from engine.study.zeroshot.ways import Way, WaysSettings
from engine.wording import counted
from models.merging import MERGERS, unwrap, wrap
from models.merging.schedule import fixed_removals
from models.merging.settings import MergeSettings
from models.merging.wrapping import schedule_of
from models.settings import UserError
from models.weights.load import load_with_classifier
from models.zoo import build_zoo

log = logging.getLogger("hybridmerge.zeroshot")
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Comparison(Generic[R]):
    """How the rows of one kind of comparison are evaluated.

    Attributes:
        settings: the model and the ways.
        row: the class of a row's record.
        content: what decides a row besides the model, the precision and the way of merging: the images and how they are
            used.
        evaluate: called with a model that merges as the row says, and the row's way; returns the fields of `row` that
            `Row` does not have, and `gmacs` and `params`.
        says: returns the measurement of a row in words.
    """

    settings: WaysSettings
    row: type[R]
    content: tuple[Any, ...]
    evaluate: Callable[[nn.Module, Way], dict[str, Any]]
    says: Callable[[R], str]

    def key(self, weights: str, way: Way) -> str:
        """Returns a fingerprint of everything that decides a row, its name not included.

        Args:
            weights: fingerprint of the model's weights.
            way: the row's way of merging.
        """
        settings, merge = self.settings, way.merge
        of_model = settings.model.model_dump(mode="json", exclude={"merge", "weights"})
        given = None if merge is None else merge.model_dump(mode="json", exclude_defaults=True)
        values = of_model, weights, *self.content, settings.precision, given
        if merge is not None and merge.target_ms is not None:  # what is merged depends on how fast the machine is
            values = (*values, device_name(pick_device(settings.device)))
        return of_values(*values) if way.size is None else of_values(*values, way.size)


def folder_of(settings: WaysSettings) -> Path:
    """Returns the folder of a comparison's results, and creates it.

    Raises:
        UserError: it is the folder of a training run, or cannot be created.
    """
    folder = Path(settings.out or f"runs/{settings.name}")
    if RunFolder(folder).is_run:
        raise UserError(f"out = {str(folder)!r}: is the folder of a training run; give another")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def pretrained(settings: WaysSettings, device: torch.device) -> tuple[nn.Module, str]:
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


def evaluate_ways(
    comparison: Comparison[R],
    model: nn.Module,
    weights: str,
    folder: Path,
    report: Callable[[str], None],
    *,
    again: bool,
) -> list[R]:
    """Evaluates every row that has not been evaluated yet, and returns all of them, the unmerged one first.

    Args:
        comparison: what is evaluated.
        model: the model without merging, from `pretrained`.
        weights: fingerprint of its weights.
        folder: where rows are kept; it is created.
        report: called with a line for each row.
        again: whether to evaluate rows once more that another version of the merging code evaluated.

    Raises:
        UserError: a budget that cannot be met, or a method that the model does not support, before anything is
            evaluated; or a file of an earlier row is damaged.
    """
    settings, ways, device = comparison.settings, comparison.settings.ways(), next(model.parameters()).device
    keys = {name: comparison.key(weights, way) for name, way in ways.items()}
    found = {name: read_row(folder, key, comparison.row) for name, key in keys.items()}
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
            row = _evaluated(comparison, models.get(way.size, model), keys[name], name, way, removed[name])
            write_row(folder, row)
        rows.append(row.model_copy(update={"name": name}))
        report(f"{number}/{len(ways)}  {name}: {comparison.says(row)}, {cost_in_words(row)}, {row.seconds:.0f} s")
    untrained = dict.fromkeys(way.merge.method for way in ways.values() if way.merge and learns(way.merge))
    if untrained:
        report(f"note: {', '.join(untrained)}: has to be trained; what it learns was drawn at random here")
    if stale and not again:
        rows_are = counted(len(stale), "row was", "rows were")
        report(f"note: {rows_are} evaluated by another version of models/merging; --again evaluates them anew")
    return rows


def _evaluated(comparison: Comparison[R], model: nn.Module, key: str, name: str, way: Way, removed: list[int]) -> R:
    """Evaluates one row."""
    merge, start = way.merge, time.perf_counter()
    # The schedule is known: a budget is not solved once more.
    merged(model, name, solved(merge, removed))
    return comparison.row(
        key=key,
        name=name,
        method=None if merge is None else merge.method,
        budget=None if merge is None else budget_in_words(merge),
        merge=None if merge is None else merge.model_dump(mode="json", exclude_defaults=True),
        removed=removed,
        **comparison.evaluate(model, way),
        seconds=time.perf_counter() - start,
        device=device_name(next(model.parameters()).device),
        versions=versions(),
        code=of_merging(),
        commit=commit(),
    )


def at_size(settings: WaysSettings, row: str, size: int, device: torch.device) -> nn.Module:
    """Returns the model without merging for images of another size, with its weights loaded.

    Raises:
        UserError: the model does not take such images, or has no weights for them.
    """
    try:
        return pretrained(settings.at(size), device)[0]
    except UserError as error:
        raise UserError(f"row {row!r} of {size} px: {error}") from None


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


def learns(merge: MergeSettings) -> bool:
    """Returns whether a way of merging has to be trained."""
    return MERGERS[merge.method].learns


def _is_wrapped(model: nn.Module) -> bool:
    try:
        schedule_of(model)
    except UserError:
        return False
    return True
