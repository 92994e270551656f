"""Reads settings: YAML files, the files that they inherit from through `base:`, and overrides from the command line.

`load_settings` is the entry point. `layered` puts one layer of settings over another. Which keys of the lower layer
lose their meaning is declared by the settings classes, see `models.settings.Settings`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from engine.settings.recipes import recipe_for
from engine.settings.schema import RunSettings
from engine.settings.types import at_key, is_free_text, is_single, is_text, may_be_null
from engine.settings.yaml12 import KEY, MAX_LENGTH, BadYAML, dump, is_null, parse
from models.settings import Settings, UserError, check, classes_in, names_of, nearest

S = TypeVar("S", bound=Settings)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OTHERS = ("segment", "studies", "zeroshot")  # folders under configs/ whose files are not the settings of a run
DOTTED = re.compile(rf"{KEY}(\.{KEY}){{0,9}}")
PLAN_KEYS = {"cfg", "configs", "rows"}  # of the plan of a study, which is no run's file
HASH = "\ue023"  # stands for # in overrides while they are read as YAML, where a # after a blank begins a comment


class _Inherits(Settings):
    """The key of a file that is no setting."""

    base: str | list[str] = []


def load_settings(cfg: str, overrides: Iterable[str] = ()) -> RunSettings:
    """Loads a settings file and the files it inherits from, applies overrides, and validates the result.

    Sections are merged key by key; lists and single values are replaced. A layer that chooses another model, dataset,
    merging method or mode of fine-tuning removes the keys that only the old choice has. A layer that gives one of
    several alternatives, such as `r` and `target_gmacs`, removes the others. Below all layers lies the recipe of the
    mode of fine-tuning, if there is one.

    Args:
        cfg: a path, or a name under configs/ such as "digits/hybrid", with or without .yaml.
        overrides: strings such as "train.lr=1e-3"; see `parse_override`.

    Raises:
        UserError: one line that names the file and line, or the key and its value, and the fix.
    """
    in_files = _load(RunSettings, _find(cfg))
    values = layered(in_files, parse_overrides(overrides))
    settings = check(RunSettings, layered(recipe_for(values, in_files), values))
    if getattr(settings.data, "size", 0) is None:  # files are read at the size that the model takes
        data = settings.data.model_copy(update={"size": settings.model.img_size})
        settings = settings.model_copy(update={"data": data})
    return settings.with_classes(settings.data.published_classes)


def load_file(cls: type[S], cfg: str, overrides: Iterable[str] = (), folder: str = "") -> S:
    """Loads a file of other settings than a run's, such as a plan, in the same way.

    Args:
        cls: the settings class of the file.
        cfg: a path, or a name under configs/, with or without .yaml.
        overrides: strings such as "model.arch=resnet18".
        folder: the folder under configs/ whose names an error suggests.

    Raises:
        UserError: as `load_settings`.
    """
    in_file = _load(cls, _find(cfg, folder))
    return check(cls, layered(in_file, parse_overrides(overrides, cls), [cls]))


def to_yaml(settings: Settings) -> str:
    """Returns all settings as YAML text, which `load_settings` reads back as equal settings."""
    return dump(settings.model_dump(mode="json"))


def parse_overrides(overrides: Iterable[str], cls: type[Settings] = RunSettings) -> dict[str, Any]:
    """Returns overrides of settings of class `cls` as one nested dictionary; of equal keys the last one counts.

    Raises:
        UserError: an override is not of the form section.key=value, or its value cannot be read.
    """
    values: dict[str, Any] = {}
    for item in overrides:
        path, value = parse_override(item, cls=cls)
        values = layered(values, reduce(lambda inner, part: {part: inner}, reversed(path), value), ())
    return values


def parse_override(item: str, *, several: bool = False, cls: type[Settings] = RunSettings) -> tuple[list[str], Any]:
    """Returns the path of keys and the value of an override, such as ["train", "lr"] and 0.001 for "train.lr=1e-3".

    Where the setting is a text, the value is exactly what follows the first "="; "null" is None where the text may be
    left out. All other values are YAML without comments.

    Args:
        item: the override. "merge.r=4" is short for "model.merge.r=4".
        several: whether the value is a list of values for the setting.
        cls: the class of the settings.

    Raises:
        UserError: the override is not of the form section.key=value, or its value cannot be read.
    """
    key, _, text = item.partition("=")
    key = key.strip()
    if not (DOTTED.fullmatch(key) and text.strip()):
        raise UserError(f"{item!r}: not an override; write section.key=value, as in train.lr=1e-3")
    path = key.split(".")
    path = ["model", *path] if path[0] == "merge" else path
    types = reduce(at_key, path, [cls])
    try:
        text.encode()
        value = _value(text, [list[one] for one in types] if several else types)
    except UnicodeEncodeError:
        raise UserError(f"{item!r}: holds bytes that are no UTF-8 text; rename what it names") from None
    except BadYAML as error:
        raise UserError(f"{item!r}: {error.problem}; the value is read as YAML, as in {key}=[1, 2]") from None
    if isinstance(value, list) and types and is_single(types) and not several:
        raise UserError(f"{item}: a run has one value of {key}; tools/study.py trains a run for each of several")
    return path, value


def _value(text: str, types: Sequence[Any]) -> Any:
    """Reads the value of an override for a setting of one of `types`; none are known for a key that does not exist."""
    if is_text(types) and is_single(types):
        if may_be_null(types) and is_null(text.strip()):
            return None
        return text if is_free_text(types) else text.strip()
    try:
        value = parse(text.strip().replace("#", HASH), types)
    except BadYAML as error:
        if not types:
            return text  # what is wrong is the key
        raise BadYAML(error.problem.replace(HASH, "#"), error.line) from None
    return _with_hashes(value)


def _with_hashes(value: Any) -> Any:
    """Puts every # back."""
    if isinstance(value, dict):
        return {_with_hashes(key): _with_hashes(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_hashes(entry) for entry in value]
    return value.replace(HASH, "#") if isinstance(value, str) else value


def _find(cfg: str, folder: str = "") -> Path:
    """Returns the path of the file that `--cfg` names; `folder` is where under configs/ it may lie as well."""
    inside = CONFIGS / folder
    for path in (Path(cfg), CONFIGS / cfg, CONFIGS / f"{cfg}.yaml", inside / cfg, inside / f"{cfg}.yaml"):
        if os.path.isfile(path):
            return path
    known = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(inside.rglob("*.yaml"))]
    others = () if folder else ("base/", *(f"{other}/" for other in OTHERS))
    runs = [name for name in known if not name.startswith(others)]
    wanted = cfg.removeprefix("configs/").removesuffix(".yaml")
    raise UserError(f"{cfg!r}: no such file, and no such name under configs/; {nearest(wanted, runs)}")


def _load(cls: type[Settings], path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a file and puts it over the files it inherits from. `chain` is the files that named it as their base."""
    names = " -> ".join(str(file) for file in (*chain, path))
    if not os.path.isfile(path):
        raise UserError(f"{names}: the last is no file; base: is relative to the file that it stands in")
    if path.resolve() in [file.resolve() for file in chain]:
        raise UserError(f"{names}: base: goes in a circle; take it out of one of them")
    values = read_yaml(path, [cls, _Inherits])
    if cls is RunSettings and PLAN_KEYS & values.keys() and "model" not in values:
        raise UserError(f"{path}: is the plan of a study, of several runs; start it with tools/study.py {path}")
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"{path}: base = {bases!r}: must be a file, or a list of files")
    layers = [*(_load(cls, path.parent / base, (*chain, path)) for base in bases), values]
    return reduce(lambda below, above: layered(below, above, [cls]), layers, {})


def read_yaml(path: Path, types: Sequence[Any]) -> dict[str, Any]:
    """Reads one file of settings as plain data, unchecked.

    Args:
        path: the file.
        types: what it may hold, such as a settings class; see `engine.settings.yaml12.parse`.

    Raises:
        UserError: one line that names the file and the line in it.
    """
    try:
        if path.stat().st_size > MAX_LENGTH:
            raise UserError(f"{path}: longer than {MAX_LENGTH:,} bytes, which no settings are; give a settings file")
        values = parse(path.read_bytes().decode("utf-8"), types)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; give a YAML file, saved as UTF-8") from None
    except BadYAML as error:
        raise UserError(f"{path}:{error.line}: {error.problem}") from None
    if not isinstance(values, dict):
        content = {type(None): "nothing", list: "a list"}.get(type(values), "a single value")
        raise UserError(f"{path}:1: holds {content}; settings are lines of `key: value`")
    return values


def layered(
    below: dict[str, Any], above: dict[str, Any], classes: Sequence[type[Settings]] = (RunSettings,)
) -> dict[str, Any]:
    """Puts one layer of settings over another, section by section; lists and single values are replaced.

    Args:
        below: the lower layer: `{}`, or what this function returned. It is not changed.
        above: the upper layer, as a file or the command line gives it. It is not changed.
        classes: the settings classes that this section can be. Their declarations say which keys of the lower layer are
            removed. None: all keys are kept.
    """
    for cls in classes:
        above = cls.spelled_out(above)
    removed = _superseded(below, above, classes)
    merged = {key: value for key, value in below.items() if key not in removed}
    for key, value in above.items():
        if isinstance(value, dict):
            old = merged.get(key)
            value = layered(old if isinstance(old, dict) else {}, value, _section_classes(key, classes))
        merged[key] = value
    return merged


def _section_classes(key: str, classes: Sequence[type[Settings]]) -> list[type[Settings]]:
    """Returns the settings classes that the section `key` of these classes can be."""
    fields = [cls.model_fields[key] for cls in classes if key in cls.model_fields]
    return list(dict.fromkeys(inner for field in fields for inner in classes_in(field.annotation)))


def _superseded(below: dict[str, Any], above: dict[str, Any], classes: Sequence[type[Settings]]) -> set[str]:
    """Returns the keys of `below` that lose their meaning under `above`."""
    removed: set[str] = set()
    if len(classes) > 1:
        keys_of_name = {name: cls.model_fields for cls in classes for name in names_of(cls)}
        if keys_of_name:
            removed |= _other_choice(below, above, "name", keys_of_name)
        else:
            removed |= _other_form(below, above, classes)
    for cls in classes:
        for group in cls.alternatives:
            if any(above.get(key) is not None for key in group):
                removed |= set(group) - above.keys()
        for key, keys_of_value in cls.keys_by_choice.items():
            removed |= _other_choice(below, above, key, keys_of_value, cls.model_fields[key].default)
    return removed


def _other_choice(
    below: dict[str, Any],
    above: dict[str, Any],
    key: str,
    keys_of_value: Mapping[str, Collection[str]],
    default: Any = None,
) -> set[str]:
    """Returns the keys that the lower layer's value of `key` has and the upper layer's value does not have."""
    old, new = below.get(key, default), above.get(key)
    if not (isinstance(old, str) and isinstance(new, str) and old in keys_of_value and new in keys_of_value):
        return set()
    return set(keys_of_value[old]) - set(keys_of_value[new])


def _other_form(below: dict[str, Any], above: dict[str, Any], classes: Sequence[type[Settings]]) -> set[str]:
    """Returns all keys of `below` where the layers can only be of different classes, such as two ways to write r."""
    forms = [{cls for cls in classes if layer.keys() <= cls.model_fields.keys()} for layer in (below, above)]
    return set(below) if all(forms) and not forms[0] & forms[1] else set()
