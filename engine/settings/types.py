"""What the settings at a key may be, as their classes declare it: where only a text is possible, a value is a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from models.settings import Settings, classes_in

CONTAINERS = (list, tuple, dict)
FreeKey = Annotated[str, "any text, such as the name of a class: not only letters, digits and _"]  # of a dict


def at_key(types: Sequence[Any], key: str) -> list[Any]:
    """Returns the types that the value of `key` can have in a section of one of `types`; empty if none has the key."""
    found: list[Any] = []
    for one in _members(types):
        if isinstance(one, type) and not get_args(one) and issubclass(one, Settings):
            found += [one.model_fields[key].annotation] if key in one.model_fields else []
        elif get_origin(one) is dict:
            found.append(get_args(one)[1])
    return found


def has_free_keys(types: Sequence[Any]) -> bool:
    """Returns whether any text can be a key, such as the name of a class, where a section is of one of `types`."""
    return any(get_origin(one) is dict and get_args(one)[0] is FreeKey for one in _members(types))


def of_entries(types: Sequence[Any]) -> list[Any]:
    """Returns the types that the entries of a list can have, where the list is of one of `types`."""
    return [get_args(one)[0] for one in _members(types) if get_origin(one) is list and get_args(one)]


def is_text(types: Sequence[Any]) -> bool:
    """Returns whether a single value of one of `types` can only be a text, or null: it may be a list or section too."""
    single = [one for one in _members(types) if one is not NoneType and not _holds_others(one)]
    return bool(single) and all(one is str or isinstance(one, str) for one in single)


def is_free_text(types: Sequence[Any]) -> bool:
    """Returns whether any text will do, as for a path; False for one of several words."""
    return str in _members(types)


def is_single(types: Sequence[Any]) -> bool:
    """Returns whether no list and no section is possible."""
    return not any(_holds_others(one) for one in _members(types))


def may_be_null(types: Sequence[Any]) -> bool:
    """Returns whether null is possible."""
    return NoneType in _members(types)


def _holds_others(one: Any) -> bool:
    return get_origin(one) in CONTAINERS or one in CONTAINERS or one is Mapping or bool(classes_in(one))


def _members(types: Sequence[Any]) -> list[Any]:
    """Returns what the unions and literals among `types` consist of; the words of a literal stand for themselves."""
    found: list[Any] = []
    for one in types:
        origin, parts = get_origin(one), get_args(one)
        if origin is Annotated:
            found += _members(parts[:1])
        elif origin is Literal:
            found += parts
        elif origin in CONTAINERS or not parts:
            found.append(NoneType if one is None else one)
        else:  # a union
            found += _members(parts)
    return found
