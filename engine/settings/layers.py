"""YAML -> checked settings: files, what they inherit through `base:`, and `section.key=value` on a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from engine.data import DATASETS
from engine.settings.schema import RunSettings
from engine.settings.yaml12 import KEY, BadYAML, dump, parse
from models import MODELS, split_name
from models.finetune import OF_MODE
from models.merging import MERGERS
from models.merging.settings import BUDGETS, OPTIONS, MergeSettings
from models.settings import Settings, UserError, check, nearest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


TABLES = {"model": MODELS, "data": DATASETS}


DOTTED = re.compile(rf"{KEY}(\.{KEY}){{0,9}}")


def load_settings(cfg: str, overrides: Iterable[str] = ()) -> RunSettings:
    """Reads a settings file, what it inherits, and overrides, the later over the earlier.

    Sections are merged key by key; lists and values are replaced. Where a layer names another model, dataset, merging
    method or mode of fine-tuning than those below it, keys that only the old one has go with it; where it says how many
    tokens are merged away (`r`, `keep`, `target_gmacs`, `target_ratio`), what those below it say of that goes.

    Args:
        cfg: a path, or a name under configs/ such as "digits/hybrid", with or without .yaml.
        overrides: such as "train.lr=1e-3"; the value is YAML. "merge.r=4" is short for "model.merge.r=4".

    Raises:
        UserError: one line that names the file and line, or the key and its value, and the fix.
    """
    settings = check(RunSettings, _layer(_load(_find(cfg)), parse_overrides(overrides)))
    if getattr(settings.data, "size", 0) is None:  # files are read at the size that the model takes
        data = settings.data.model_copy(update={"size": settings.model.img_size})
        settings = settings.model_copy(update={"data": data})
    return settings


def to_yaml(settings: RunSettings) -> str:
    """The settings, every key of them, as YAML that `load_settings` reads back as equal settings."""
    return dump(settings.model_dump(mode="json"))


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Overrides as one nested mapping.

    Raises:
        UserError: one that is not of the form section.key=value, or whose value is no YAML.
    """
    values: dict[str, Any] = {}
    for item in overrides:
        key, _, text = (part.strip() for part in item.partition("="))
        if not (DOTTED.fullmatch(key) and text):
            raise UserError(f"{item!r}: not an override; write section.key=value, as in train.lr=1e-3")
        try:
            value = parse(text)
        except BadYAML as error:
            raise UserError(f"{item!r}: {error.problem}; a text may need quotes: '{key}=\"...\"'") from None
        key = f"model.{key}" if key.split(".")[0] == "merge" else key
        values = _merge(values, reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value))
    return values


def _find(cfg: str) -> Path:
    """The file that `--cfg` means."""
    for path in (Path(cfg), CONFIGS / cfg, CONFIGS / f"{cfg}.yaml"):
        if os.path.isfile(path):
            return path
    known = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
    runs = [name for name in known if not name.startswith("base/")]
    wanted = cfg.removeprefix("configs/").removesuffix(".yaml")
    raise UserError(f"{cfg!r}: no such file, and no such name under configs/; {nearest(wanted, runs)}")


def _load(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file over what it inherits. `chain` is the files that led to it."""
    names = " -> ".join(str(file) for file in (*chain, path))
    if not os.path.isfile(path):
        raise UserError(f"{names}: the last is no file; base: is relative to the file that it stands in")
    if path.resolve() in [file.resolve() for file in chain]:
        raise UserError(f"{names}: base: goes in a circle; take it out of one of them")
    values = _read(path)
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"{path}: base = {bases!r}: must be a file, or a list of files")
    below = reduce(_layer, [_load(path.parent / base, (*chain, path)) for base in bases], {})
    return _layer(below, values)


def _read(path: Path) -> dict[str, Any]:
    """What stands in one file."""
    try:
        values = parse(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; give a YAML file, saved as UTF-8") from None
    except BadYAML as error:
        raise UserError(f"{path}:{error.line}: {error.problem}") from None
    if not isinstance(values, dict):
        found = {type(None): "nothing", list: "a list"}.get(type(values), "a single value")
        raise UserError(f"{path}:1: holds {found}; settings are lines of `key: value`")
    return values


def _layer(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` merged over `below`, less what belonged only to a model or dataset that `above` replaces."""
    below, above = (_split_model(values) for values in (below, above))
    for section, table in TABLES.items():
        old, new = below.get(section), above.get(section)
        if isinstance(old, dict) and isinstance(new, dict) and "name" in new:
            gone = _options(table, old.get("name")) - _options(table, new["name"])
            below = {**below, section: _without(old, gone)}
    old, new = (_section(values, "model", "merge") for values in (below, above))
    if gone := _superseded(old, new):
        below = {**below, "model": {**below["model"], "merge": _without(old, gone)}}
    old, mode = _section(below, "finetune"), _section(above, "finetune").get("mode")
    if old and mode in OF_MODE:
        gone = {key for other, keys in OF_MODE.items() if other != mode for key in keys}
        below = {**below, "finetune": _without(old, gone)}
    return _merge(below, above)


def _split_model(values: dict[str, Any]) -> dict[str, Any]:
    """`model.name: timm:resnet18` as name and arch, which is how settings keep it."""
    model = values.get("model")
    return {**values, "model": split_name(model)} if isinstance(model, dict) else values


def _superseded(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """Keys of `model.merge` that a layer above puts out of force: other ways to say how many tokens go, and options
    of a method that it replaces."""
    gone: set[str] = set()
    if any(new.get(key) is not None for key in BUDGETS):
        gone |= set(BUDGETS) - new.keys()
    before, now = _section(old, "r"), _section(new, "r")
    if before and now and ("train" in before) != ("train" in now):
        gone.add("r")  # {train: ...} and {first: n, last: n}: no mixture of them is anything
    method, default = new.get("method"), MergeSettings.model_fields["method"].default
    if method != old.get("method", default) and method in list(MERGERS):
        gone |= set(OPTIONS) - MERGERS[method].options.keys()
    return gone & old.keys()


def _section(values: dict[str, Any], *path: str) -> dict[str, Any]:
    """A section of nested settings; empty where there is none."""
    for key in path:
        inner = values.get(key)
        values = inner if isinstance(inner, dict) else {}
    return values


def _without(values: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in gone}


def _options(table: Mapping[str, tuple[type[Settings], Any]], name: Any) -> set[str]:
    return set(table[name][0].model_fields) if isinstance(name, str) and name in table else set()


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A new mapping: `above` over `below`, sections key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = below.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
