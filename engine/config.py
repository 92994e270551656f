"""YAML -> checked settings: files, what they inherit through `base:`, and `section.key=value` on a command line."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from engine.data import DATASETS, AugmentSettings, SplitSettings
from engine.yaml12 import KEY, BadYAML, dump, parse
from models import MODELS, split_name
from models.finetune import OF_MODE, FinetuneSettings
from models.merging import MERGERS
from models.merging.settings import BUDGETS, OPTIONS, MergeSettings
from models.settings import Settings, UserError, check, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TABLES = {"model": MODELS, "data": DATASETS}
DOTTED = re.compile(rf"{KEY}(\.{KEY}){{0,9}}")
# What a resumed run may have otherwise than before. Another device, or number of threads, changes the last bits of what
# is computed; where the data lies may change, but not the data: the checkpoint has its fingerprint. So may the weights
# that it began with: the checkpoint has what they became, and of what did not learn the digest.
FREE_ON_RESUME = re.compile(
    r"(name|out|device|threads|model\.weights|data\.(root|path|images|workers)|(checkpoint|log)\..*)"
)


def one_of(table: Mapping[str, tuple[type[Settings], Any]]) -> Any:
    """The type of a section whose `name` chooses one of the table's settings classes."""
    classes = tuple(cls for cls, _ in table.values())
    return classes[0] if len(classes) == 1 else Annotated[Union[classes], Field(discriminator="name")]  # noqa: UP007


Model, Dataset = one_of(MODELS), one_of(DATASETS)
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(Settings):
    """How the weights are found."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    steps: int | None = Field(None, ge=1, description="in place of epochs: optimizer steps")
    batch_size: int = Field(128, ge=1, description="images per micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimizer step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum")
    lr: float = Field(1e-3, gt=0, description="learning rate after the warm-up")
    lr_batch: int | None = Field(None, ge=1, description="images per step that lr was chosen for; others are warned of")
    weight_decay: float = Field(0.05, ge=0, description="of weights; norms, biases and tokens have none")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: list[Beta] = Field([0.9, 0.999], min_length=2, max_length=2, description="of adamw: two, each in [0, 1)")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the learning rate falls, step by step")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the learning rate rises; at most epochs")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="in place of warmup_epochs: share of all steps")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end; less than lr")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: not clipped")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device has it")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average, per step; 0: none")

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.warmup_epochs and (self.warmup_ratio or self.steps):
            other = "warmup_ratio" if self.warmup_ratio else "steps"
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: not beside train.{other}; give warmup_ratio alone")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: must be at most train.epochs = {self.epochs}")
        if self.min_lr >= self.lr:
            raise ValueError(f"min_lr = {self.min_lr}: must be less than train.lr = {self.lr}")
        return self


class CheckpointSettings(Settings):
    """When the run is saved."""

    every_steps: int = Field(0, ge=0, description="optimizer steps between checkpoints; 0: at each epoch's end only")


class LogSettings(Settings):
    """What the run reports."""

    every_steps: int = Field(20, ge=1, description="optimizer steps between lines of metrics.jsonl and TensorBoard")
    images: int = Field(16, ge=0, description="pictures of the most confident mistakes, per validation; 0: none")


class RunSettings(Settings):
    """A whole run."""

    name: str = Field(
        pattern=r"^[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*$",
        description="the run folder's name under `out`: no slash, no dot or blank at its start",
    )
    out: str = Field("runs", pattern=r"^[^\x00]+$", description="the folder that run folders are made in")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda, cuda:N or mps"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of torch; null: torch decides")
    model: Model = Field(description="the network, chosen by name")
    data: Dataset = Field(description="the images, chosen by name")
    split: SplitSettings = Field(SplitSettings(), description="validation images, and the part that trains")
    augment: AugmentSettings = Field(AugmentSettings(), description="changes to training images")
    train: TrainSettings = Field(TrainSettings(), description="optimisation")
    finetune: FinetuneSettings | None = Field(None, description="what of the model learns; null: everything")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="saving")
    log: LogSettings = Field(LogSettings(), description="reporting")


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


def changed_on_resume(stored: RunSettings, given: RunSettings) -> str:
    """The first setting that keeps a resumed run from ending as it would have, in words; "" if there is none."""
    before, now = _flat(stored.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    for key in {**now, **before}:
        if now.get(key) != before.get(key) and not FREE_ON_RESUME.fullmatch(key):
            return f"{key} = {now.get(key)!r}: the run was begun with {before.get(key)!r}"
    return ""


def schema() -> dict[str, Any]:
    """A JSON schema of settings files, for editors. Nothing is required, because `base:` may bring it."""
    base = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "a file or files to inherit from, relative to this one; later ones win",
    }
    loose = _loosen(RunSettings.model_json_schema())
    properties = {"base": base, **loose["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **loose, "properties": properties}


def cli(main: Callable[[list[str]], None]) -> int:
    """Runs a tool on the command line's arguments and returns its exit code.

    0; 2 for a user's mistake, said in one line on stderr; 130 for Ctrl-C; 141 if whoever reads stdout has gone.
    Everything else is a bug and keeps its traceback.
    """
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tools switch it off while they import
    try:
        try:
            main(sys.argv[1:])
        except UserError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a closed pipe shows here, not when Python exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
        code = code or 141
    return code


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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _loosen(node: Any) -> Any:
    """A JSON schema without `required`, and with `anyOf` for a choice by name, which may stand in the base file."""
    if isinstance(node, list):
        return [_loosen(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    kept = {key: entry for key, entry in node.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _loosen(entry) for key, entry in kept.items()}
