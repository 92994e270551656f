"""Compares the settings of a resumed run with those it was started with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.settings.schema import RunSettings

# Settings that may differ when a run is resumed. Another device or number of threads changes only the last bits of the
# numbers. Paths of data may change, but not the data: the checkpoint holds their fingerprint. The path of the starting
# weights may change, since the checkpoint holds the trained weights, and a digest of those that were not trained.
FREE_ON_RESUME = re.compile(
    r"(name|out|device|threads|model\.weights|data\.(root|path|images|workers)|(checkpoint|log)\..*)"
)


def changed_on_resume(stored: RunSettings, given: RunSettings, *, may_go_on: bool = False) -> str:
    """Returns a phrase that names the first setting whose change would alter the result; "" if there is none.

    Args:
        stored: the settings that the run was started with.
        given: the settings that it is resumed with.
        may_go_on: whether more epochs than at the start are allowed, or more steps if the run is measured in steps.
    """
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    for key in {**now, **before}:
        from_data = key == "model.num_classes" and None in (now.get(key), before.get(key))
        longer = may_go_on and key == _length(stored) and _is_longer(before[key], now[key])
        if now.get(key) != before.get(key) and not (from_data or longer or FREE_ON_RESUME.fullmatch(key)):
            return f"{key} = {now.get(key)!r}: the run was started with {before.get(key)!r}"
    return ""


def goes_on(stored: RunSettings, given: RunSettings) -> str:
    """Returns a phrase that says how a resumed run becomes longer than it was started for; "" if it does not."""
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    key = _length(stored)
    return f"{key} = {now[key]}, started with {before[key]}" if _is_longer(before[key], now[key]) else ""


def _length(settings: RunSettings) -> str:
    """Returns the setting that decides how long a run is; with `train.steps`, `train.epochs` has no effect."""
    return "train.epochs" if settings.train.steps is None else "train.steps"


def _is_longer(before: int | None, now: int | None) -> bool:
    """Whether a duration was given before and is larger now."""
    return before is not None and now is not None and now > before


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
