"""Compares the settings of a run with those that it was started with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from engine.settings.distill import is_run
from engine.settings.schema import RunSettings

# Settings that may differ when a run is resumed. Another device or number of threads changes only the last bits of the
# numbers. Paths of data may change, but not the data: the checkpoint holds their fingerprint. The path of the starting
# weights may change, since the checkpoint holds the trained weights, and a digest of those that were not trained; but
# whether there are any may not, since the results say how a run was trained. So may the folder of the run that teaches,
# of whose weights the checkpoint has a digest. How parameters and activations are kept changes no number.
FREE_ON_RESUME = re.compile(
    r"(name|out|device|threads|model\.weights|train\.(teacher|parallel|checkpoint_activations)|data\.(root|path|images|workers)|(checkpoint|log)\..*)"
)
WEIGHTS, TEACHER = "model.weights", "train.teacher"


def decisive(settings: RunSettings) -> dict[str, Any]:
    """Returns the settings that decide what a run results in, as plain data by dotted key: a checkpoint records them.

    Settings that may differ when the run is resumed are left out.
    """
    flat = flattened(settings)
    kept = {key: value for key, value in flat.items() if not FREE_ON_RESUME.fullmatch(key)}
    teacher = flat[TEACHER]
    return kept | {WEIGHTS: flat[WEIGHTS] and "a file", TEACHER: "a run" if is_run(teacher) else teacher}


def changed_on_resume(stored: RunSettings | Mapping[str, Any], given: RunSettings, *, may_go_on: bool = False) -> str:
    """Returns a phrase that names the first setting whose change would alter the result; "" if there is none.

    Args:
        stored: the settings that the run was started with, or what `decisive` returned for them, perhaps in another
            version, which may have had other settings.
        given: the settings that it is resumed with, or that its folder has now.
        may_go_on: whether more epochs than at the start are allowed, or more steps if the run is measured in steps.
    """
    before, now = _decisive(stored), decisive(given)
    for key, value in before.items():
        from_data = key == "model.num_classes" and None in (now.get(key), value)
        longer = may_go_on and key == _length(before) and _is_longer(value, now.get(key))
        if from_data or longer or (key in now and now[key] == value):
            continue
        if key in now:
            return f"{key} = {_shown(now[key])}: the run was started with {_shown(value)}"
        if section := _written_otherwise(key, now):
            return f"{section}: the run was started with {key} = {_shown(value)}"
    return ""


def freely_changed(stored: RunSettings, given: RunSettings) -> list[str]:
    """Returns a phrase for each setting that differs and may differ: "device = 'cpu', before 'cuda'"."""
    before, now = (flattened(settings) for settings in (stored, given))
    return [
        f"{key} = {_shown(value)}, before {_shown(before.get(key))}"
        for key, value in now.items()
        if value != before.get(key) and FREE_ON_RESUME.fullmatch(key)
    ]


def goes_on(stored: RunSettings | Mapping[str, Any], given: RunSettings) -> str:
    """Returns a phrase that says how a resumed run becomes longer than it was started for; "" if it does not."""
    before, now = _decisive(stored), decisive(given)
    key = _length(before)
    longer = _is_longer(before.get(key), now[key])
    return f"{key} = {now[key]}, started with {before[key]}" if longer else ""


def _decisive(settings: RunSettings | Mapping[str, Any]) -> Mapping[str, Any]:
    return decisive(settings) if isinstance(settings, RunSettings) else settings


def _length(decisive: Mapping[str, Any]) -> str:
    """Returns the setting that decides how long a run is; with `train.steps`, `train.epochs` has no effect."""
    return "train.epochs" if decisive.get("train.steps") is None else "train.steps"


def _is_longer(before: int | None, now: int | None) -> bool:
    """Whether a duration was given before and is larger now."""
    return before is not None and now is not None and now > before


def _written_otherwise(key: str, now: Mapping[str, Any]) -> str:
    """Returns the section or value that is in the place of `key`; "" if this version has no such setting."""
    for other, value in now.items():
        if key.startswith(f"{other}."):
            return f"{other} = {_shown(value)}"
        if other.startswith(f"{key}."):
            return f"{other} = {_shown(value)}"
    return ""


def _shown(value: Any) -> str:
    """Returns a value as it can be written into a settings file."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def flattened(settings: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as plain data by dotted key; a dictionary that is no section is one value."""
    flat: dict[str, Any] = {}
    plain = settings.model_dump(mode="json")
    for key, value in settings:
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else {prefix + key: plain[key]}
    return flat
