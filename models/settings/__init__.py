"""The base class of all settings, the settings that all models share, and errors for users that fit on one line."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Tag, ValidationError
from pydantic.fields import FieldInfo

S = TypeVar("S", bound="Settings")


class UserError(ValueError):
    """A user's mistake, described on one line: the key or path, the value, and the fix. Tools exit with code 2."""


class Settings(BaseModel):
    """Base of all settings: refuses unknown keys, inf and nan, converts nothing silently, and is immutable.

    Where one file of settings is put over another, some keys of the lower one lose their meaning. A class declares
    which, and `engine.settings.layers` applies it:

    Attributes:
        alternatives: groups of keys of which one is given. A key of a group replaces the group's keys in lower files.
        keys_by_choice: for a key that chooses, such as `method`, the keys that each of its values has. Another value
            removes from lower files the keys that only the old value has.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    keys_by_choice: ClassVar[Mapping[str, Mapping[str, Collection[str]]]] = {}

    @classmethod
    def spelled_out(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the keys and values of a file with their short forms written out; most classes have no short form."""
        return values


def _absolute(weights: str | None) -> str | None:
    """Makes a path absolute, so that a run folder can be read from anywhere; gives names on hubs their present form."""
    if weights is None:
        return None
    if weights.partition(":")[0] in ("timm", "torchvision"):
        from .zoo import current_weights  # which imports this

        return current_weights(weights)
    return os.path.abspath(os.path.expanduser(weights))


class ModelSettings(Settings):
    """The options that all models share. A model's own class adds its options and a `name`, which chooses the class.

    Attributes:
        default_classes: the number of classes if neither the settings nor the data specify it.
    """

    default_classes: ClassVar[int] = 1000

    img_size: int = Field(224, gt=0, le=16384, description="height and width of the image, pixels")
    in_chans: int = Field(3, gt=0, le=1024, description="image channels")
    num_classes: int | None = Field(
        None, gt=0, le=1000000, description="number of classes; null: as many as the data have"
    )
    weights: Annotated[str | None, AfterValidator(_absolute)] = Field(
        None, min_length=1, description="weights to start from: timm:NAME, torchvision:NAME, a file, or a run folder"
    )

    @property
    def classes(self) -> int:
        """The number of classes of a model with these settings."""
        return self.default_classes if self.num_classes is None else self.num_classes


def nearest(word: str, known: list[str]) -> str:
    """Returns the end of an error line: the nearest known names, or all of them if none is near."""
    close = get_close_matches(str(word), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def check(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Validates `values` as `cls`.

    Args:
        cls: the settings class.
        values: keys and values from a YAML file or keyword arguments.
        where: dotted prefix for the keys in an error, e.g. "model".

    Raises:
        UserError: one line that names the first offending key, its value and the fix.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        line = _line(cls, error.errors(), where)
        raise UserError(re.sub(r"(\S{80})\S{200,}", r"\1...", line)) from None


def _line(cls: type[BaseModel], details: list[Mapping[str, Any]], where: str) -> str:
    """Describes the first mistake, and counts how many more keys are wrong.

    A value that fits no member of `int | list[int]` has an error for each member: the deepest error is the most
    specific, and errors of equal depth are alternatives.
    """
    located = [(*_locate(cls, detail), detail) for detail in details]
    top = located[0][0]
    here = [(path, owner, detail) for path, owner, detail in located if path[: len(top)] == top]
    path, owner, first = max(here, key=lambda entry: len(entry[0]))
    line = _explain([*where.split("."), *path] if where else path, owner, first)
    rest = [_reason(detail) for other, _, detail in here if other == path and detail is not first]
    line += "".join(f" or {reason}" for reason in dict.fromkeys(rest) if reason not in line)
    more = len({tuple(path) for path, _, _ in located if path[: len(top)] != top})
    return line + (f" (and {more} more)" if more else "")


def _explain(path: list[str], owner: type[BaseModel] | None, detail: Mapping[str, Any]) -> str:
    key, value, kind = ".".join(path), detail["input"], detail["type"]
    field = owner.model_fields.get(path[-1]) if owner and path else None
    if kind == "extra_forbidden" and owner is not None:
        return f"{key}: unknown key; {nearest(path[-1], sorted(owner.model_fields))}"
    if kind == "missing":
        return f"{key}: missing; it has no default"
    if kind == "union_tag_invalid":
        known = detail["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.name = {detail['ctx']['tag']!r}: unknown; {nearest(detail['ctx']['tag'], known)}"
    if kind == "union_tag_not_found":
        known = _names(field)
        return f"{key}.name: missing; " + (f"known: {', '.join(known)}" if known else "write {name: ..., key: value}")
    if kind == "literal_error" and field is not None:
        known = [str(value) for value in _literals(field.annotation)]
        hint, names = nearest(value, known), ", ".join(known)
        return f"{key} = {_show(value)}: {hint}" + ("" if names in hint else f" ({names})")
    if kind == "value_error" and isinstance(value, Mapping):  # a section's own check: its text begins with its key
        return ".".join([*path, _reason(detail).removeprefix(f"{path[-1]}." if path else "")])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        form = "{name: ..., key: value}" if path[-1].isdigit() else f"{path[-1]}: {{key: value}}"
        return f"{key} = {_show(value)}: must be a section, as in {form}"
    if kind == "string_pattern_mismatch" and field is not None and field.description:
        return f"{key} = {_show(value)}: must be {field.description}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal") and field and _range(field):
        return f"{key} = {_show(value)}: must be {_range(field)}"
    return f"{key or 'settings'} = {_show(value)}: {_reason(detail)}"


def _reason(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "bool_type":
        return "use true or false"
    if detail["type"] in ("too_short", "too_long"):
        word = "at least" if detail["type"] == "too_short" else "at most"
        limit = detail["ctx"].get("min_length", detail["ctx"].get("max_length"))
        return f"must have {word} {limit} {'entry' if limit == 1 else 'entries'}, not {len(detail['input'])}"
    return detail["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _show(value: Any, most: int = 80) -> str:
    """Returns a value as it is written in Python, on one line, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _range(field: FieldInfo) -> str:
    """Returns all bounds of a number, such as "at least 0 and less than 1"; empty if the field itself has none."""
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [f"{word} {getattr(m, name)}" for m in field.metadata for name, word in words.items() if hasattr(m, name)]
    return " and ".join(bounds)


def _locate(cls: type[BaseModel], detail: Mapping[str, Any]) -> tuple[list[str], type[BaseModel] | None]:
    """Returns the key path of an error without pydantic's union tags, and the class that the last key belongs to."""
    loc, unknown = detail["loc"], detail["type"] == "extra_forbidden"
    path: list[str] = []
    owners: list[type[BaseModel]] = [cls]
    owner: type[BaseModel] | None = cls
    section: Any = None  # the last key's annotation, until a tag has chosen among its classes
    for i, part in enumerate(loc):
        holder = next((c for c in owners if part in c.model_fields), None)
        tagged = [c for c in owners if part in names_of(c)] if len(owners) > 1 else []
        if marked := _marked(section, part):
            owners, section = marked, None
        elif tagged:
            owners, section = tagged, None
        elif holder is not None:
            owner, section = holder, holder.model_fields[part].annotation
            owners = classes_in(section)
            path.append(str(part))
        elif get_origin(section) is dict and part != "[key]":  # an entry of a section whose keys are free
            section = None
            path.append(str(part))
        elif isinstance(part, int) or (unknown and i == len(loc) - 1):
            owner = owners[0] if owners else None
            path.append(str(part))
    return path, owner


def _names(field: FieldInfo | None) -> list[str]:
    """The names that a section such as `model: {name: ...}` can take."""
    return [tag for c in (classes_in(field.annotation) if field else []) for tag in names_of(c)]


def _marked(annotation: Any, tag: int | str) -> list[type[BaseModel]]:
    """The classes that a union names by a tag of its own, as in `Annotated[A, Tag("a")] | Annotated[B, Tag("b")]`."""
    parts = get_args(annotation)
    if any(isinstance(part, Tag) and part.tag == tag for part in parts):
        return classes_in(annotation)
    return [cls for part in parts for cls in _marked(part, tag)]


def _literals(annotation: Any) -> list[Any]:
    """Every value that the literals inside an annotation allow, such as `Literal["a", "b"] | None`."""
    parts = get_args(annotation)
    return list(parts) if get_origin(annotation) is Literal else [v for part in parts for v in _literals(part)]


def names_of(cls: type[BaseModel]) -> tuple[str, ...]:
    """Returns the values of `name` that choose this class; empty for a class without `name`."""
    return get_args(cls.model_fields["name"].annotation) if "name" in cls.model_fields else ()


def classes_in(annotation: Any) -> list[type[BaseModel]]:
    """Returns every settings class inside an annotation such as `A | B | None`."""
    if parts := get_args(annotation):  # checked first, because Python 3.10 takes list[int] for a class
        return [cls for part in parts for cls in classes_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
