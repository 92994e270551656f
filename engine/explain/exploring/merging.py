"""Changes how a model merges: the method, and a budget in percent of its multiply-adds without merging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.cost.macs import measure_or_say
from engine.explain.exploring.subject import Subject
from engine.figures.merge_tracing import UNTRAINED
from engine.runs.checkpoints.checkpoint import load_model_state
from models.builders import build
from models.interface import as_merging_model, depends_on_image, merge_settings, tokens_per_block
from models.merging import MERGERS, wrap
from models.merging.budget import TooCoarse
from models.merging.schedule import fixed_removals
from models.merging.settings import BUDGETS, OPTIONS, MergeSettings
from models.settings import UserError, check
from models.settings.zoo import ZooSettings

BASELINES = ("random", "pool")  # are offered last
EVERYTHING = 2**20  # patches: more than a block has, so that it removes what it can
WHOLE = 100  # percent: no merging


@dataclass(frozen=True)
class Budget:
    """How a model merges, and what it costs.

    Attributes:
        removed: the patches that each block removes; empty for a model that cannot merge.
        gmacs: multiply-adds of one image, billions; None: they cannot be counted.
        tokens: what leaves the last block, prefix included; None for a model without blocks.
    """

    removed: Sequence[int]
    gmacs: float | None
    tokens: int | None


class Merging:
    """The merging of a model, which `apply` changes.

    Args:
        subject: the model, whose merging may be changed in place.

    Attributes:
        model: as it merges now.
        methods: keys of MERGERS that the model can use without training, the one that it came with first; none: it
            cannot merge.
        why_not: the reason, where there are none.
        whole: what it costs without merging.
        start: the budget that it came with, percent.
    """

    def __init__(self, subject: Subject) -> None:
        self._settings = subject.settings
        self.model, self._device = subject.model, subject.device
        self._weights = dict(subject.model.state_dict())  # with what a method has learned
        self._own = self._came_with()
        self._solved: dict[tuple[str, int], list[int]] = {}
        self._least: dict[str, int] = {}
        own = _cost(self.model)
        self.methods, self.why_not = self._fitting()
        self.whole, self.start = own, WHOLE
        if not self.methods:
            return
        first = self.methods[0]
        self._set(first, r=0)
        self.whole = _cost(self.model)
        if not self.whole.gmacs or (own.gmacs is None and not depends_on_image(self.model)):
            self.methods, self.why_not = [], "its multiply-adds cannot be counted"
        elif any(own.removed):
            self.start = max(1, min(round(WHOLE * own.gmacs / self.whole.gmacs), WHOLE - 1))
            self._solved[first, self.start] = list(own.removed)

    def least(self, method: str) -> int:
        """The smallest budget that a method can reach, percent; that of the start is one of them."""
        if MERGERS[method].pooling is not None:  # it has learned this budget, or these blocks, alone
            return self.start
        if method not in self._least:
            self._set(method, r=EVERYTHING)
            gmacs, whole = _cost(self.model).gmacs, self.whole.gmacs
            assert gmacs is not None and whole is not None
            least = min(math.ceil(WHOLE * gmacs / whole), WHOLE)
            self._least[method] = min(least, self.start) if method == self.methods[0] else least
        return self._least[method]

    def apply(self, method: str, percent: int) -> Budget:
        """Has the model merge by a method, at so many percent of its multiply-adds without merging, or near it.

        A method that has learned a number of tokens merges as it was trained, or not at all, whichever is nearer.

        Raises:
            UserError: the method cannot reach the budget.
        """
        if not self.methods:
            return self.whole
        percent = max(min(percent, WHOLE), self.least(method))
        if MERGERS[method].pooling is not None:
            percent = self.start if percent - self.start < WHOLE - percent else WHOLE
        if percent == WHOLE:
            self._set(method, r=0)
        elif (method, percent) in self._solved:
            self._set(method, r=self._solved[method, percent])
        else:
            try:
                self._set(method, target_ratio=WHOLE / percent)
            except TooCoarse as error:
                self._set(method, r=list(error.schedule))
        budget = _cost(self.model)
        self._solved.setdefault((method, percent), list(budget.removed))
        return budget

    def _came_with(self) -> str | None:
        """The method that the model came with; None: it did not merge."""
        merge = merge_settings(self._settings)
        return None if merge is None or merge.method == "none" else merge.method

    def _fitting(self) -> tuple[list[str], str]:
        """The methods that the model can use, and if there is none, why not."""
        if merge_settings(self._settings) is None and not isinstance(self._settings, ZooSettings):
            return [], f"{self._settings.name} has no tokens"
        fitting, why = [], ""
        others = sorted(UNTRAINED, key=lambda method: method in BASELINES)
        for method in dict.fromkeys([*filter(None, [self._own]), *others]):
            try:
                self._set(method, r=0)
            except UserError as error:
                why = why or str(error)
            else:
                fitting.append(method)
        return fitting, "" if fitting else why

    def _set(self, method: str, **budget: Any) -> None:
        """Puts a method and a budget in place of what was there; the other keys stay, as far as the method has them."""
        merge = merge_settings(self._settings)
        given = {} if merge is None else merge.model_dump(exclude_defaults=True, exclude={*BUDGETS, "target_batch"})
        if merge is not None and merge.keep is not None:
            given["blocks"] = merge.keep.blocks
        if method != self._own:
            given = {key: value for key, value in given.items() if key not in (*OPTIONS, "metric")}
        if isinstance(budget.get("r"), list):
            given = {key: value for key, value in given.items() if key not in ("first_block", "blocks")}
        wanted = {**given, "method": method, **budget}
        if not isinstance(self._settings, ZooSettings):
            self.model = self._rebuilt(wanted)
            return
        wrap(self.model, **wanted)
        if method == self._own:  # another method had no place for what this one has learned
            self.model.load_state_dict(self._weights, strict=False)

    def _rebuilt(self, wanted: dict[str, Any]) -> nn.Module:
        """A model of ours with the same weights, built to merge otherwise."""
        values = self._settings.model_dump(exclude={"merge"})
        merge = check(MergeSettings, wanted, where="merge").model_dump(exclude_defaults=True)
        model = build(check(type(self._settings), {**values, "merge": merge}, where="model"))
        named = model.state_dict()
        load_model_state(model, {name: value for name, value in self._weights.items() if name in named}, "model")
        return model.to(self._device, memory_format=torch.channels_last).eval()  # as runs have it, to the last bit


def _cost(model: nn.Module) -> Budget:
    merging, tokens = as_merging_model(model), tokens_per_block(model)
    removed = [] if merging is None or merging.grid is None else fixed_removals(merging.schedule)
    return Budget(removed, measure_or_say(model).gmacs, tokens[-1] if tokens else None)
