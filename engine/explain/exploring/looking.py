"""What a model makes of one image, with a way of merging and a way of explaining."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from engine.explain.depth import enlarged, regions, scale_of
from engine.explain.drawing import TOP, nothing_shown, overlay
from engine.explain.explaining import in_words
from engine.explain.exploring.merging import Budget, Merging
from engine.explain.exploring.subject import Subject
from engine.figures.merge_tracing import Merged
from engine.machine import device_name
from models.explain import EXPLAINERS, explain
from models.interface import trace_tokens
from models.settings import UserError
from models.timing import time_models

PASSES = 5  # timed, of which the median is shown


@dataclass(frozen=True)
class Seen:
    """What the page shows of an image.

    Attributes:
        top: names and probabilities of the most likely classes, the likeliest first.
        budget: how the model merged, and what it costs.
        whole: the same without merging.
        milliseconds: the median of PASSES forward passes of this one image, in fp32.
        device: what computed them.
        photograph: what the model saw, uint8 (H, W, 3).
        regions: the tokens that are left, uint8 (H, W, 3); None for a model that cannot merge.
        patches: how many there were before merging; None likewise.
        left: how many tokens of patches are left; None likewise.
        heat: the explanation over the photograph, uint8 (H, W, 3).
        note: what the explanation says besides.
    """

    top: Sequence[tuple[str, float]]
    budget: Budget
    whole: Budget
    milliseconds: float
    device: str
    photograph: Tensor
    regions: Tensor | None
    patches: int | None
    left: int | None
    heat: Tensor
    note: str


class Explorer:
    """Looks at images with one model, one at a time, whoever asks.

    Args:
        subject: the model. What it merges is changed.
        options: of the methods of EXPLAINERS, such as {"lime": {"samples": 200}}.

    Attributes:
        subject: the same.
        merging: its merging.
        explainers: keys of EXPLAINERS that the model can be explained with.
        explainer: the one to begin with.
    """

    def __init__(self, subject: Subject, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.subject, self._options = subject, {"occlusion": _window(subject.settings.img_size), **(options or {})}
        self._lock = Lock()  # merging changes the model
        self.merging = Merging(subject)
        self.explainers = self._fitting()
        self.explainer = "gradient_rollout" if "gradient_rollout" in self.explainers else self.explainers[0]

    def least(self, method: str) -> int:
        """The smallest budget that a merging method can reach, percent."""
        with self._lock:
            return self.merging.least(method)

    def look(self, image: Tensor, method: str, percent: int, explainer: str) -> Seen:
        """Looks at an image.

        Args:
            image: uint8 (C, H, W), of `Subject.pixels`.
            method: one of the merging methods; of no consequence to a model that cannot merge.
            percent: the budget, in percent of the multiply-adds without merging.
            explainer: a key of EXPLAINERS.

        Raises:
            UserError: an unknown method, a budget that cannot be met, or an explanation that the model does not serve
                or for which a package is missing.
        """
        if self.merging.methods and method not in self.merging.methods:
            raise UserError(f"method {method}: not one of {', '.join(self.merging.methods)}")
        with self._lock:
            budget = self.merging.apply(method, percent)
            model, images = self.merging.model, self.subject.input_of(image)
            found = explain(model, images, explainer, **self._options.get(explainer, {}))
            merged = self._merged(images)
            times = time_models({"model": model}, {"model": images}, PASSES, self.subject.device, nullcontext())
        seen, scale = image.expand(3, -1, -1), scale_of(image)
        relevance = found.relevance[0].cpu()
        heat = overlay(seen, relevance, EXPLAINERS[explainer].signed)
        probabilities = self.subject.task.probabilities(found.logits)[0].cpu()
        values, numbers = probabilities.topk(min(TOP, len(probabilities)))
        return Seen(
            top=[(self.subject.classes[i], value) for i, value in zip(numbers.tolist(), values.tolist(), strict=True)],
            budget=budget,
            whole=self.merging.whole,
            milliseconds=statistics.median(times["model"]),
            device=device_name(self.subject.device),
            photograph=torch.from_numpy(enlarged(seen.permute(1, 2, 0).numpy(), scale)),
            regions=None if merged is None else torch.from_numpy(regions(seen, merged, scale).copy()),
            patches=None if merged is None else merged.index.numel(),
            left=None if merged is None else merged.tokens,
            heat=torch.from_numpy(enlarged(heat.numpy(), scale)),
            note=nothing_shown(relevance) or in_words(found.notes[0]),
        )

    def _fitting(self) -> list[str]:
        """Tries those that need one pass on a grey image; those that perturb an image, and report, fit every model."""
        settings, fitting = self.subject.settings, []
        size, channels = settings.img_size, settings.in_chans
        grey = self.subject.input_of(torch.full((channels, size, size), 128, dtype=torch.uint8))
        for name, explainer in EXPLAINERS.items():
            try:
                if not explainer.reports:
                    explain(self.merging.model, grey, name)
            except UserError:
                continue
            fitting.append(name)
        return fitting

    def _merged(self, images: Tensor) -> Merged | None:
        """What was merged in an image (1, C, H, W); None for a model that cannot merge."""
        with torch.inference_mode():
            traced = trace_tokens(self.merging.model, images) if self.merging.methods else None
        if traced is None or traced[1] is None:
            return None
        tokens, grid = traced
        prefix = tokens.index.shape[1] - prod(grid)
        index = tokens.index[0, prefix:].view(grid).cpu() - prefix
        return Merged("", index, tokens.size.shape[1] - prefix)


def _window(size: int) -> dict[str, int]:
    """The window of occlusion that suits small images, too; the method's own from 128 pixels on."""
    window = max(1, min(EXPLAINERS["occlusion"].options["window"], size // 4))
    return {"window": window, "stride": max(1, window // 2)}
