"""Which settings may differ when a run is resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.settings.schema import RunSettings

# What a resumed run may have otherwise than before. Another device, or number of threads, changes the last bits of what
# is computed; where the data lies may change, but not the data: the checkpoint has its fingerprint. So may the weights
# that it began with: the checkpoint has what they became, and of what did not learn the digest.
FREE_ON_RESUME = re.compile(
    r"(name|out|device|threads|model\.weights|data\.(root|path|images|workers)|(checkpoint|log)\..*)"
)


def changed_on_resume(stored: RunSettings, given: RunSettings) -> str:
    """The first setting that keeps a resumed run from ending as it would have, in words; "" if there is none."""
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    for key in {**now, **before}:
        left_to_the_data = key == "model.num_classes" and None in (now.get(key), before.get(key))
        if now.get(key) != before.get(key) and not (left_to_the_data or FREE_ON_RESUME.fullmatch(key)):
            return f"{key} = {now.get(key)!r}: the run was begun with {before.get(key)!r}"
    return ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
