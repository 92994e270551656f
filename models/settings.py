"""Settings of models: pydantic classes that refuse unknown keys, and errors that fit on one line."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

S = TypeVar("S", bound="Settings")


class UserError(ValueError):
    """A user's mistake, said in one line: the key or path, the value, and what to do. Tools exit with code 2."""


class Settings(BaseModel):
    """Base of all settings: unknown keys refused, no silent conversion, no inf or nan, immutable once checked."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)


def nearest(word: str, known: list[str]) -> str:
    """The end of an error line: the nearest known names, or all of them if none is near."""
    close = get_close_matches(str(word), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def check(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Validates `values` as `cls`.

    Args:
        cls: the settings class.
        values: keys and values as a YAML file or keyword arguments gave them.
        where: dotted prefix for the keys in an error, e.g. "model".

    Raises:
        UserError: one line that names the first offending key, its value and the fix.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors()
        line = _explain(cls, details[0], where)
        more = len(details) - 1
        raise UserError(line + (f" (and {more} more)" if more else "")) from None


def _explain(cls: type[BaseModel], detail: Mapping[str, Any], where: str) -> str:
    path, owner = _locate(cls, detail["loc"])
    key = ".".join([where] * bool(where) + path) or "settings"
    if detail["type"] == "extra_forbidden" and owner is not None:
        return f"{key}: unknown key; {nearest(path[-1], sorted(owner.model_fields))}"
    if detail["type"] == "missing":
        return f"{key}: missing; it has no default"
    if detail["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in detail["ctx"]["expected_tags"].split(",")]
        return f"{key}.name = {detail['ctx']['tag']!r}: unknown; {nearest(detail['ctx']['tag'], known)}"
    if detail["type"] == "union_tag_not_found":
        return f"{key}.name: missing; say which one"
    if detail["type"] == "literal_error":
        known = [str(v) for v in get_args(owner.model_fields[path[-1]].annotation)] if owner else []
        hint = nearest(detail["input"], known) if known else detail["msg"]
        return f"{key} = {detail['input']!r}: {hint}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key} = {detail['input']!r}: {message}"


def _locate(cls: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The key path of an error location without pydantic's union tags, and the class that the last key belongs to."""
    path: list[str] = []
    owners: list[type[BaseModel]] = [cls]
    owner: type[BaseModel] | None = cls
    for part in loc:
        field = next((c.model_fields[part] for c in owners if part in c.model_fields), None)
        if field is not None:
            owner = next(c for c in owners if part in c.model_fields)
            path.append(str(part))
            owners = _classes(field.annotation)
            continue
        tagged = [c for c in owners if "name" in c.model_fields and part in get_args(c.model_fields["name"].annotation)]
        if tagged:
            owners = tagged
        elif isinstance(part, int) or (owners and part == loc[-1]):
            owner = owners[0] if owners else owner
            path.append(str(part))
    return path, owner


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """Every settings class inside an annotation such as `A | B | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [c for part in get_args(annotation) for c in _classes(part)]
