"""Reads the plan of a study and overrides from the command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.settings.layers import CONFIGS, parse_override, read_yaml
from engine.settings.schema import RunSettings
from engine.settings.yaml12 import BadYAML, parse
from engine.study.plan.schema import PlanSettings
from models.settings import UserError, check, nearest

PLAN_FILE = "study.yaml"  # in a study folder: the plan that it was made by; a folder with this file is a study
OF_THE_PLAN = ("name", "out", "jobs", "threads", "seeds", "folds", "sweep")  # keys that overrides change in the plan
NOT_IN_SETS = {"name": "the study names its runs", "out": "give the plan's own out:", "seed": "use the plan's seeds:"}


@dataclass(frozen=True)
class Plan:
    """A checked plan.

    Attributes:
        path: the file.
        settings: its keys, with those of the command line over them.
        overrides: settings of all runs from the command line, such as "train.epochs=3".
        command: what starts this study again.
        text: of the file.
        beside: the folder that configs' paths are relative to: that of the file which the study was first started from.
    """

    path: Path
    settings: PlanSettings
    overrides: tuple[str, ...]
    command: str
    text: str
    beside: Path

    @property
    def folder(self) -> Path:
        """The study folder."""
        return Path(self.settings.out or Path("runs") / self.settings.name)

    @property
    def record(self) -> str:
        """What `study.yaml` holds: the plan as it was given, and above it the command and the plan's folder."""
        own = [line for line in self.text.splitlines(keepends=True) if not line.startswith((COMMAND, BESIDE))]
        return f"{COMMAND}{self.command}\n{BESIDE}{os.path.abspath(self.beside)}\n" + "".join(own)


COMMAND, BESIDE = "# started as: ", "# configs are relative to: "


def read_plan(path: str, arguments: Sequence[str] = ()) -> Plan:
    """Reads and checks a plan.

    Args:
        path: a file, a name under configs/ such as "studies/digits", or a study folder: the plan in it with the
            arguments that it was started with, below those given now. The study stays in this folder.
        arguments: overrides, of keys of the plan (OF_THE_PLAN) or of settings of all its runs.

    Raises:
        UserError: one line that names the file and the key, or the override, and the fix.
    """
    file = _find(path)
    values = read_yaml(file, [PlanSettings])
    if "model" in values:
        raise UserError(f"{file}: holds the settings of one run; name it under configs: in a plan, or train it alone")
    text, beside = file.read_text(encoding="utf-8"), file.parent
    in_place = file == Path(path) / PLAN_FILE or (file.name == PLAN_FILE and _recorded(text, COMMAND) is not None)
    if in_place:
        arguments, beside = _with_earlier(text, arguments), _beside(text, beside)
    own, overrides = _parted(arguments)
    if in_place and not {"name", "out"} & own.keys():
        own["out"] = str(file.parent)
    try:
        settings = check(PlanSettings, {**values, **own})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    sets = [("set", settings.set), *((f"rows.{name}.set", row.set) for name, row in settings.rows.items())]
    _check_sets(file, [*sets, ("vary", settings.vary)])
    for item in overrides:
        parse_override(item)
    command = shlex.join(["tools/study.py", path, *arguments])
    return Plan(file, settings, tuple(overrides), command, text, beside)


def _with_earlier(text: str, arguments: Sequence[str]) -> list[str]:
    """Returns the arguments that `study.yaml` records and those given now, which replace earlier ones of their key.

    Where the study lies, and under which name, is known: it is being given.
    """
    known = {"name", "out", *(item.partition("=")[0].strip() for item in arguments)}
    try:
        words = shlex.split(_recorded(text, COMMAND) or "")[2:]
    except ValueError:  # edited
        words = []
    return [*(word for word in words if "=" in word and word.partition("=")[0].strip() not in known), *arguments]


def _beside(text: str, otherwise: Path) -> Path:
    folder = _recorded(text, BESIDE)
    return Path(folder) if folder else otherwise


def _recorded(text: str, what: str) -> str | None:
    return next((line.removeprefix(what) for line in text.splitlines() if line.startswith(what)), None)


def _check_sets(file: Path, sets: Iterable[tuple[str, dict[str, Any]]]) -> None:
    for where, values in sets:
        for key, instead in NOT_IN_SETS.items():
            if key in values:
                raise UserError(f"{file}: {where}.{key}: not here; {instead}")


def _parted(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments that change keys of the plan, read, and those that are settings of its runs."""
    own, others = {}, []
    for item in arguments:
        key, equals, text = item.partition("=")
        if key.strip() not in OF_THE_PLAN or not (equals and text.strip()):
            others.append(item)
            continue
        try:
            own[key.strip()] = parse(f"{key.strip()}: {text.strip()}", [PlanSettings])[key.strip()]
        except BadYAML as error:
            raise UserError(f"{item!r}: {error.problem}; the value is read as YAML, as in seeds=[0, 1]") from None
    for item in others:
        if item.partition("=")[0].strip() == "seed":
            raise UserError(f"{item}: use seeds=[0, 1], or how many, seeds=2")
    return own, others


def _find(path: str) -> Path:
    for file in (Path(path), Path(path) / PLAN_FILE, CONFIGS / path, CONFIGS / f"{path}.yaml"):
        if os.path.isfile(file):
            return file
    if os.path.isdir(path):
        raise UserError(f"{path}: no study folder (it has no {PLAN_FILE}); give a plan, a YAML file")
    known = [f"studies/{file.stem}" for file in sorted((CONFIGS / "studies").glob("*.yaml"))]
    wanted = path.removeprefix("configs/").removesuffix(".yaml")
    raise UserError(f"{path!r}: no such file, and no such plan under configs/; {nearest(wanted, known)}")


def as_overrides(values: dict[str, Any]) -> list[str]:
    """Returns settings by key as overrides, as they are written on the command line: {"merge.r": 4} -> ["merge.r=4"].

    A section is written out key by key.
    """
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and value and key.partition(".")[0] in {*RunSettings.model_fields, "merge"}:
            found += as_overrides({f"{key}.{inner}": entry for inner, entry in value.items()})
        else:
            found.append(f"{key}={plain(value)}")
    return found


def plain(value: Any) -> str:
    """Returns a value as it is written behind `key=`."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
