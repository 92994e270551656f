"""The space of a search: what its keys may be, and the settings that a point in it stands for."""

from __future__ import annotations

from itertools import islice, product
from typing import Any

from engine.settings.layers import load_settings
from engine.settings.schema import RunSettings
from engine.study.plan.reading import NOT_IN_SETS, Plan, as_overrides, plain
from engine.study.plan.rows import Row, rows_of
from engine.study.plan.schema import RangeSettings, SearchSettings
from models.settings import UserError, nearest

POINTS = 64  # of a space that are looked at before it is refused
ALONE = ("vary", "folds", "sweep")  # keys of a plan that are not beside a search


def checked(plan: Plan) -> tuple[Row, RunSettings, str]:
    """Returns the row that a search changes, its settings, and the metric.

    Raises:
        UserError: the plan does not fit a search.
    """
    search = plan.settings.search
    assert search is not None
    row = base_of(plan)
    base = settings_of(plan, row, {})
    metric = metric_of(plan, search, base)
    check_space(plan, row, search)
    return row, base, metric


def base_of(plan: Plan) -> Row:
    """Returns the row whose settings a search changes.

    Raises:
        UserError: the plan has several rows or seeds, or keys that a search does not have.
    """
    settings = plan.settings
    rows = rows_of(plan)
    if len(rows) > 1:
        raise UserError(f"{plan.path}: search: changes one row, and there are {len(rows)}; give one config")
    for key in ALONE:
        if getattr(settings, key):
            raise UserError(f"{plan.path}: {key}: not beside search; run the best settings in a plan of their own")
    if settings.seeds is not None and len(seeds_of(settings.seeds)) > 1:
        raise UserError(f"{plan.path}: seeds = {settings.seeds}: a search has one seed; seeds: [0]")
    return rows[0]


def seeds_of(seeds: int | list[int]) -> list[int]:
    return list(range(seeds)) if isinstance(seeds, int) else seeds


def settings_of(plan: Plan, row: Row, values: dict[str, Any]) -> RunSettings:
    """Returns the settings of a row with values of the space put over it.

    Raises:
        UserError: the values are not allowed, or not together.
    """
    seeds = plan.settings.seeds
    more = [f"seed={seeds_of(seeds)[0]}"] if seeds is not None else []
    more += [f"threads={plan.settings.threads}"] if plan.settings.threads else []
    return load_settings(row.cfg, [*row.overrides, *as_overrides(values), *more])


def metric_of(plan: Plan, search: SearchSettings, settings: RunSettings) -> str:
    """Returns the name of the metric that a search maximises, on the validation images.

    Raises:
        UserError: it is not one of these labels, or there are no validation images.
    """
    task = settings.data.task
    if settings.split.val == 0:
        raise UserError(f"{plan.path}: search: needs validation images, and split.val = 0; set split.val=0.1")
    metric = search.metric or settings.train.select or task.main_metric
    if metric not in task.titles:
        raise UserError(f"{plan.path}: search.metric = {metric!r}: {nearest(metric, [*task.titles])}")
    return metric


def check_space(plan: Plan, row: Row, search: SearchSettings) -> None:
    """Checks, before hours of training, that the space has points that are allowed: no key is misspelt.

    Values that are not allowed with some others are left to the trials that meet them.

    Raises:
        UserError: a key that the study sets itself or that is given on the command line too, or no point is allowed.
    """
    values_of = {
        key: [*entry] if isinstance(entry, list) else [entry.low, entry.high] for key, entry in search.space.items()
    }
    for key, instead in NOT_IN_SETS.items():
        if key in values_of:
            raise UserError(f"{plan.path}: search.space.{key}: not here; {instead}")
    given = {_whole(override.partition("=")[0]): override for override in plan.overrides}
    for key in values_of:
        if (override := given.get(_whole(key))) is not None:
            raise UserError(f"{override}: search.space has other values for {key}; leave one of the two out")
    points = list(islice(product(*values_of.values()), POINTS))
    points += [tuple(values[at % len(values)] for values in values_of.values()) for at in range(POINTS)]
    error = None
    for point in points:
        try:
            settings_of(plan, row, dict(zip(values_of, point, strict=True)))
            return
        except UserError as found:
            error = error or found
    raise UserError(f"{plan.path}: search.space: no values are allowed, since {error}")


def _whole(key: str) -> str:
    """Returns a dotted key without its short form: "merge.r" is "model.merge.r"."""
    return f"model.{key}" if key.startswith("merge.") else key


def suggest(trial: Any, search: SearchSettings) -> dict[str, Any]:
    """Returns the values that a trial of optuna tries, by dotted key.

    Raises:
        ValueError: the space is not the one that the trial began with.
    """
    values: dict[str, Any] = {}
    for key, entry in search.space.items():
        if isinstance(entry, list):  # optuna takes single values as choices, and settings may be lists
            texts = [plain(choice) for choice in entry]
            values[key] = entry[texts.index(trial.suggest_categorical(key, texts))]
        else:
            values[key] = _in_range(trial, key, entry)
    return values


def _in_range(trial: Any, key: str, entry: RangeSettings) -> int | float:
    if isinstance(entry.low, int) and isinstance(entry.high, int):
        return trial.suggest_int(key, entry.low, entry.high, log=entry.log)
    value = trial.suggest_float(key, float(entry.low), float(entry.high), log=entry.log)
    return float(f"{value:.4g}")  # as it can be typed; the next trials learn from the exact value
