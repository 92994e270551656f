"""Which entries of a file fit a model, by the reading of their names that fits best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..hybrid import Hybrid
from ..interface import NamedHeads
from .convert import RESIZED, filtered, of_libraries, renamed, resized
from .files import WRAPPERS, State
from .fold import without_layer_scale
from .google import beside_google
from .report import Report

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
# A prefix is tried if it is that of this share of the names, and has at most this many parts.
PREFIX_SHARE, PREFIX_PARTS = 0.1, 4


class Reading(NamedTuple):
    """A way to read the names in a file."""

    prefix: str  # what other programs put before the names; it is removed
    part: str  # prefix of the part of the model that the weights are for
    before: State  # names of that part, shapes in the file
    after: State  # the same with converted shapes
    outside: list[str]  # names in the file without the prefix, which the part does not have
    folded: int  # layer scales that are in other layers now
    how: dict[str, str]  # what was done to the tensors that have another shape now, by name


class Fit(NamedTuple):
    """A reading, and what of it fits."""

    reading: Reading
    report: Report
    tensors: State  # by the model's names

    @property
    def elements(self) -> int:
        return sum(value.numel() for value in self.tensors.values())


def best_fit(source: str, model: nn.Module, state: State) -> Fit:
    """Returns the reading by which most elements fit; of equal ones that with the fewest names left over, or the first.

    Files that hold several models of the same shape, such as a student and its teacher, are noted in the report.
    """
    fits = [_fit(source, model, reading) for reading in _readings(model, state)]
    best = max(fits, key=lambda fit: (fit.elements, -len(fit.report.unexpected)))
    used = {id(value) for value in best.tensors.values()}
    others = [
        fit.reading.prefix
        for fit in fits
        if fit.elements > 0.9 * best.elements and not any(id(value) in used for value in fit.tensors.values())
    ]
    if others:
        best.report.others = [*dict.fromkeys(others), best.reading.prefix]
        best.report.unexpected = [name for name in best.report.unexpected if not name.startswith(tuple(others))]
    return best


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the prefixes of the names of parameters in classification layers."""
    named = model.head_names if isinstance(model, NamedHeads) else ()
    named = named if isinstance(named, tuple) and named else HEADS  # torchvision's ViT has a module of that name
    timm = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in (*named, *((timm,) if isinstance(timm, str) else timm)))


def _readings(model: nn.Module, state: State) -> Iterator[Reading]:
    """Yields all ways to read the names in a file, the simplest first."""
    parts = [("", model)] + ([("vit.", model.vit)] if isinstance(model, Hybrid) else [])
    for part, module in parts:
        own = module.state_dict().keys()
        for prefix in ("", *_prefixes(state)):
            entries = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
            beside = {name: value for name, value in rest.items() if name in own and name not in entries}
            unscaled, folded = without_layer_scale(of_libraries({**entries, **beside}), own)
            before = renamed(unscaled, module)
            after, how = resized(before, module)
            outside = [name for name in rest if name not in beside] + beside_google(unscaled)
            yield Reading(prefix, part, before, after, outside, folded, how)
            if (converted := filtered(after, module)) is not None:
                yield Reading(prefix, part, before, converted, outside, folded, how)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Returns prefixes that many names share, those first under which checkpoints store weights."""
    every = list(names)
    counts: Counter = Counter()
    for name in every:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[:n]) + "." for n in range(1, min(len(parts), PREFIX_PARTS) + 1))
    common = [prefix for prefix, count in counts.items() if count >= PREFIX_SHARE * len(every)]
    common = [prefix for prefix in common if not prefix.split(".")[-2].isdigit()]
    order = {key: i for i, key in enumerate(WRAPPERS)}
    return sorted(common, key=lambda prefix: (prefix.count("."), order.get(prefix.split(".")[0], len(order))))


def _fit(source: str, model: nn.Module, reading: Reading) -> Fit:
    """Returns what of a reading fits the model."""
    own, report, tensors = model.state_dict(), Report(source, folded=reading.folded), {}
    for name, value in reading.after.items():
        full = reading.part + name
        if full not in own:
            report.unexpected += [name] * (not name.endswith(COMPUTED))
        elif value.shape == own[full].shape and _is_number(value) == _is_number(own[full]):
            tensors[full] = value
            if name in reading.before and reading.before[name].shape != value.shape:
                report.resized.append((full, tuple(reading.before[name].shape), tuple(value.shape)))
                report.how[full] = reading.how.get(name, RESIZED)  # timm's filters resize
        else:
            report.mismatched.append((full, tuple(reading.before.get(name, value).shape), tuple(own[full].shape)))
    report.unexpected += reading.outside
    _complete(report, tensors, own)
    left = [name for name in own if name not in tensors and not name.endswith(COMPUTED)]
    heads = heads_of(model)
    report.loaded = list(tensors)
    report.replaced = [name for name in left if name.startswith(heads)]
    report.missing = [name for name in left if not name.startswith(heads)]
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(reading.part) and not name.startswith(heads)
    }
    report.share = sum(size for name, size in sizes.items() if name in tensors) / max(sum(sizes.values()), 1)
    return Fit(reading, report, tensors)


def _is_number(value: Tensor) -> bool:
    """Returns whether values are what a layer computes with: not whole numbers, nor 8 bits that need a scale."""
    return value.is_floating_point() and value.element_size() > 1


def _complete(report: Report, tensors: State, own: State) -> None:
    """Leaves out the bias of a layer whose weight does not fit, and sets to zero one that the file's layer lacks."""
    for full, _, _ in report.mismatched:
        if full.endswith("weight"):
            tensors.pop(full.removesuffix("weight") + "bias", None)
    misfits = {full for full, _, _ in report.mismatched}
    for full in list(tensors):
        bias = full.removesuffix("weight") + "bias"
        if full.endswith("weight") and bias in own and bias not in tensors and bias not in misfits:
            tensors[bias] = torch.zeros_like(own[bias])
            report.zeroed.append(bias)
