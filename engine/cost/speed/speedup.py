"""Measures how much faster a model is with merging than without, beside the ratio of their MACs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from engine.cost.macs import measure_or_say
from engine.cost.speed.timing import synchronise, timed
from engine.machine import pick_autocast
from models.budget import solve
from models.builders import build
from models.formulas import FORMULAS, formula_macs
from models.interface import SettingsWithMerging, merging_method, model_name
from models.merging import wrap
from models.merging.layer import MergeLayer
from models.merging.settings import MergeSettings
from models.settings import ModelSettings, UserError


@dataclass(frozen=True)
class Speedup:
    """Times of a model without and with merging, in milliseconds of each timed call."""

    mac_ratio: float | None  # MACs without merging over MACs with it; None if they cannot be counted
    unmerged: list[float]
    merged: list[float]
    merging: list[float]  # the part of `clocked` spent on matching and merging; empty while training
    clocked: list[float]  # forward passes in which each merge is timed, which makes them slower than `merged`

    @property
    def gains(self) -> list[float]:
        """Time without merging over time with it, round by round."""
        return [unmerged / merged for unmerged, merged in zip(self.unmerged, self.merged, strict=True)]

    @property
    def shares(self) -> list[float]:
        """The part of the forward pass that matching and merging take, as fractions; empty while training."""
        return [part / whole for part, whole in zip(self.merging, self.clocked, strict=True)]


def measure_speedup(
    settings: ModelSettings, batch_size: int, precision: str, repeats: int, device: torch.device, *, train: bool
) -> Speedup:
    """Times a model with its merging and without, in rounds.

    Times the forward pass in evaluation mode or, with `train`, the forward and backward pass of a training step.

    Args:
        settings: the settings of a model that merges.
        batch_size: images of a batch.
        precision: "fp32" or "bf16" (autocast).
        repeats: timed calls of each.
        device: the device to compute on.
        train: time training steps.

    Raises:
        UserError: the model does not merge.
    """
    plain, settings = _without_merging(settings), solve(settings)
    merged, unmerged = build(settings).to(device), build(plain).to(device)
    unmerged.load_state_dict(merged.state_dict(), strict=False)  # `unmerged` has no learned metric and no wrapper
    images = torch.randn(batch_size, settings.in_chans, settings.img_size, settings.img_size, device=device)
    autocast = pick_autocast(precision, device)
    spent: list[float] = []

    def forward(model: nn.Module) -> None:
        model.eval()
        with torch.inference_mode(), autocast:
            model(images)

    def step(model: nn.Module) -> None:
        model.train()
        with autocast:
            logits = model(images)
        logits.float().square().mean().backward()

    def clocked() -> None:
        with _clock_merging(merged, spent, device):
            forward(merged)

    run = step if train else forward
    calls = {"unmerged": lambda: run(unmerged), "merged": lambda: run(merged)}
    times = timed(calls if train else {**calls, "clocked": clocked}, repeats, device)
    per_pass = len(spent) // (repeats + 1)  # merges of one forward pass; the first pass was the warm-up
    merging = [sum(spent[i * per_pass : (i + 1) * per_pass]) for i in range(1, repeats + 1)]
    before, after = _macs(plain, unmerged), _macs(settings, merged)
    return Speedup(
        before / after if before and after else None,
        times["unmerged"],
        times["merged"],
        [] if train else merging,
        times.get("clocked", []),
    )


def _without_merging(settings: ModelSettings) -> ModelSettings:
    """Returns the settings of the same model without merging.

    Raises:
        UserError: the model does not merge in the first place.
    """
    name = model_name(settings)
    if not isinstance(settings, SettingsWithMerging):
        raise UserError(f"model.name = {name!r}: has no tokens to merge; measure a ViT, such as --speedup digits/vit")
    if settings.merge is None:
        try:
            wrap(build(settings), method="tome", r=8)
        except UserError as error:
            advice = "measure a ViT, such as --speedup digits/vit"
            raise UserError(f"model.name = {name!r}: cannot merge ({error}); {advice}") from None
        raise UserError(f"model.merge: missing, so that {name} does not merge; add model.merge.r=8, for example")
    if merging_method(settings) == "none":
        raise UserError("model.merge.method = 'none': there is no merging to measure; give another, such as tome")
    if name == settings.name:
        return settings.model_copy(update={"merge": MergeSettings(method="none")})
    return settings.model_copy(update={"merge": None})  # another library's model, as it is


def _macs(settings: ModelSettings, model: nn.Module) -> int | None:
    """Returns the MACs of one image: by formula, or as traced if there is none; None if they cannot be counted."""
    return sum(formula_macs(settings).values()) if settings.name in FORMULAS else measure_or_say(model).macs


@contextmanager
def _clock_merging(model: nn.Module, spent: list[float], device: torch.device) -> Iterator[None]:
    """Appends the milliseconds of each merge to `spent` while the context is active."""
    starts: list[float] = []

    def before(*_: object) -> None:
        synchronise(device)
        starts.append(time.perf_counter())

    def after(*_: object) -> None:
        synchronise(device)
        spent.append(1e3 * (time.perf_counter() - starts.pop()))

    layers = [module for module in model.modules() if isinstance(module, MergeLayer)]
    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
