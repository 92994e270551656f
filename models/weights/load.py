"""Loads weights into a model: determines which entries fit, checks them, loads them all at once, and reports on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..hybrid import Hybrid
from ..interface import NamedHeads
from ..settings import UserError
from .convert import filtered, first_conv, renamed, resized
from .files import State, read_path
from .hubs import HUBS

Shape = tuple[int, ...]

# Prefixes that other programs put before all names of a model; they are removed if more entries fit without them.
PREFIXES = ("backbone.", "encoder.", "vit.", "model.")
# Names of classification layers, for models that do not name theirs.
HEADS = (
    "head",
    "heads",
    "head_dist",
    "fc",
    "classifier",
    "last_linear",
    "trans_cls_head",
    "conv_cls_head",
    "vit.head",
    "conv_head.fc",
    "AuxLogits.fc",
    "aux1.fc2",
    "aux2.fc2",
)
# Buffers that are counted or computed, not learned; it does not matter if they are missing.
COMPUTED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


@dataclass
class Report:
    """The outcome of loading weights. Names are the model's, except that unexpected ones are the file's.

    Attributes:
        source: the requested weights.
        loaded: names whose values were loaded.
        missing: names, except those of heads, that keep their initial values.
        unexpected: names in the file that the model does not have, converted as far as possible.
        resized: name, shape in the file, shape in the model.
        mismatched: likewise, for names that could not be loaded because of their shape; they are also listed as missing
            or replaced.
        replaced: names of heads that keep their initial values.
        share: the fraction of the parameters before the head, counted by elements, that was loaded.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    share: float = 0.0

    def lines(self) -> list[str]:
        """Returns the report as lines for the log."""
        share = f"{self.share:.1%} of the parameters before the head"
        lines = [f"weights: {self.source}: {len(self.loaded)} tensors loaded, {share}"]
        for name, old, new in self.resized:
            how = "summed over the image's channels" if len(old) == 4 and old[1] != new[1] else "resized"
            lines.append(f"weights: {name} {how} from {old} to {new}")
        if self.replaced:
            lines.append(f"weights: head left as initialised: {_few(self._with_shapes(self.replaced))}")
        if self.missing:
            lines.append(f"weights: {len(self.missing)} missing: {_few(self._with_shapes(self.missing))}")
        if self.unexpected:
            lines.append(f"weights: {len(self.unexpected)} unexpected: {_few(self.unexpected)}")
        return lines

    def _with_shapes(self, names: list[str]) -> list[str]:
        shapes = {name: f"{name} [file {old}, model {new}]" for name, old, new in self.mismatched}
        return [shapes.get(name, name) for name in names]


def load_weights(model: nn.Module, source: str, state: State | None = None) -> Report:
    """Loads weights into `model`, converted to its layout. On an error the model is left unchanged.

    Args:
        model: one of MODELS, or a timm or torchvision model. A hybrid takes a ViT's weights into its `vit`.
        source: timm:NAME, torchvision:NAME or torchvision:NAME.WEIGHTS, a file (.pth, .pt, .bin, .tar, .ckpt,
            .safetensors, Google's .npz), or a run folder, whose best.pt is used.
        state: the content of `source`, if it has already been read.

    Raises:
        UserError: the weights cannot be found or read, have another number of image channels, or are not finite, or
            less than half of the parameters before the head would be loaded.
    """
    library, colon, name = source.partition(":")
    if state is None:
        state = HUBS[library](name) if colon and library in HUBS else read_path(source)
    fits = [_fit(source, model, part, before, after) for part, before, after in _readings(model, state)]
    report, tensors = max(fits, key=lambda fit: sum(value.numel() for value in fit[1].values()))
    _check(report, model, tensors)
    model.load_state_dict(tensors, strict=False)
    return report


def _readings(model: nn.Module, state: State) -> Iterator[tuple[str, State, State]]:
    """Yields all ways to read the names in a file, the simplest first; the one by which most elements fit is used.

    Each is the prefix of the part of the model that the weights are for, the state with that part's names, and the same
    with converted shapes.
    """
    parts = [("", model)] + ([("vit.", model.vit)] if isinstance(model, Hybrid) else [])
    states = [state]
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            states.append({name.removeprefix(prefix): value for name, value in state.items()})
    for part, module in parts:
        for entries in states:
            before = renamed(entries, module)
            after = resized(before, module)
            yield part, before, after
            if (own := filtered(after, module)) is not None:
                yield part, before, own


def _fit(source: str, model: nn.Module, part: str, before: State, after: State) -> tuple[Report, State]:
    """Returns a report and the tensors of `after` that fit, under names with the prefix `part`.

    `before` has the shapes in the file.
    """
    own, report, tensors = model.state_dict(), Report(source), {}
    for name, value in after.items():
        full = part + name
        if full not in own:
            report.unexpected += [name] * (not name.endswith(COMPUTED))
        elif value.shape == own[full].shape and value.is_floating_point() == own[full].is_floating_point():
            tensors[full] = value
            if name in before and before[name].shape != value.shape:
                report.resized.append((full, tuple(before[name].shape), tuple(value.shape)))
        else:
            report.mismatched.append((full, tuple(before.get(name, value).shape), tuple(own[full].shape)))
    for full, _, _ in report.mismatched:  # a bias is useless without its weight
        if full.endswith(".weight"):
            tensors.pop(full.removesuffix("weight") + "bias", None)
    left = [name for name in own if name not in tensors and not name.endswith(COMPUTED)]
    heads = _heads(model)
    report.loaded = list(tensors)
    report.replaced = [name for name in left if name.startswith(heads)]
    report.missing = [name for name in left if not name.startswith(heads)]
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(part) and not name.startswith(heads)
    }
    report.share = sum(size for name, size in sizes.items() if name in tensors) / max(sum(sizes.values()), 1)
    return report, tensors


def _check(report: Report, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    key, conv = f"model.weights = {report.source!r}", first_conv(model)
    for name, old, new in report.mismatched:
        if name == conv and len(old) == len(new) == 4 and old[0] == new[0] and old[2:] == new[2:]:
            also = " (or 1: they are summed)" if old[1] == 3 else ""
            raise UserError(f"{key}: {name} takes {old[1]} channels, model.in_chans = {new[1]}; use {old[1]}{also}")
    if report.share < 0.5:
        lost = {"missing": report._with_shapes(report.missing), "unexpected": report.unexpected}
        details = "; ".join(f"{len(names)} {what} ({_few(names, 3)})" for what, names in lost.items() if names)
        raise UserError(
            f"{key}: fits {report.share:.0%} of the model's parameters before the head: {details}; "
            "give weights of the same architecture"
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{key}: {name} contains values that are not finite; give other weights")


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Returns the prefixes of the names of parameters in classification layers."""
    named = model.head_names if isinstance(model, NamedHeads) else ()
    named = named if isinstance(named, tuple) and named else HEADS  # torchvision's ViT has a module of that name
    timm = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in (*named, *((timm,) if isinstance(timm, str) else timm)))


def _few(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
