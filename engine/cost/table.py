"""The costs of models as rows of a table, as records for JSON, and broken down by module (tools/flops.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from torch import nn

from engine.cost.macs import DEPENDS, Complexity, measure_or_say
from engine.tables import Column
from engine.wording import NOT_COUNTED, fixed
from models.budget import solve
from models.builders import build
from models.settings import ModelSettings, UserError


class ModelCost(NamedTuple):
    """A model, built with random weights, and what one image through it costs."""

    name: str
    model: nn.Module
    cost: Complexity


def cost_of(name: str, settings: ModelSettings) -> ModelCost:
    """Builds a model and counts what it costs; a budget in its settings is solved first.

    Args:
        name: the model's name in the table.
        settings: the model's settings.

    Raises:
        UserError: a budget that cannot be met.
        CountError: the count and the formula of a model of our own disagree.
    """
    solved = solve(settings)
    model = build(solved)
    return ModelCost(name, model, measure_or_say(model, settings=solved))


def record(model: ModelCost) -> dict[str, Any]:
    """Returns a model's entry in the JSON file of tools/flops.py; `gflops` counts two FLOPs for each MAC.

    Numbers that cannot be counted are None, and `not_counted` says why.
    """
    gmacs = model.cost.gmacs
    values = {
        "name": model.name,
        "params": model.cost.params,
        "gmacs": gmacs,
        "gflops": None if gmacs is None else 2 * gmacs,
        "activations": model.cost.activations,
        "tokens": model.cost.tokens,
    }
    return values if model.cost.not_counted is None else {**values, "not_counted": model.cost.not_counted}


def tokens_left(tokens: list[int]) -> str:
    """Returns the number of tokens after each block as text, with equal neighbours grouped: [5, 4, 4] -> "5 2x4"."""
    lengths = [(count, len(list(blocks))) for count, blocks in groupby(tokens)]
    return " ".join(str(count) if blocks == 1 else f"{blocks}x{count}" for count, blocks in lengths) or "-"


def _counted(value: float | None, decimals: int) -> str:
    return NOT_COUNTED if value is None else fixed(value, decimals)


def _activations(model: ModelCost) -> str:
    return NOT_COUNTED if model.cost.activations is None else fixed(model.cost.activations / 1e6, 3)


def _formula(model: ModelCost) -> str:
    return "-" if model.cost.formula_macs is None else fixed(model.cost.formula_macs / 1e9, 4)


# Columns of the table, and the text of each for a model.
COLUMNS: tuple[tuple[Column, Callable[[ModelCost], str]], ...] = (
    (Column("model", words=True), lambda model: model.name),
    (Column("params M"), lambda model: fixed(model.cost.params / 1e6, 3)),
    (Column("GMACs"), lambda model: _counted(model.cost.gmacs, 4)),
    (Column("by formula"), _formula),
    (Column("GFLOPs (1 MAC = 2 FLOPs)"), lambda model: _counted(record(model)["gflops"], 4)),
    (Column("activations M"), _activations),
    (Column("tokens left", words=True), lambda model: tokens_left(model.cost.tokens)),
)

MODULE_COLUMNS = (Column("module", words=True), Column("params"), Column("MACs"), Column("share of MACs"))


def breakdown(model: ModelCost, depth: int) -> list[tuple[str, ...]]:
    """Returns the cells of MODULE_COLUMNS for each module.

    Args:
        model: a model and its cost.
        depth: number of levels of modules; 1 shows only the model's own children.

    Returns:
        A row for the whole model, then one for each module that has parameters or MACs.

    Raises:
        UserError: the model cannot be counted.
    """
    if model.cost.not_counted:
        raise UserError(f"--by-module: {model.name} is not counted: {model.cost.not_counted}; omit it")
    rows = []
    for path, macs in model.cost.by_module.items():
        params = sum(parameter.numel() for parameter in model.model.get_submodule(path).parameters())
        if path.count(".") < depth and (macs or params):
            share = f"{100 * macs / model.cost.macs:.2f} %" if model.cost.macs else "-"
            rows.append((path or "(all)", f"{params:,}", f"{macs:,}", share))
    return rows


def other_estimates(model: ModelCost) -> str | None:
    """Returns fvcore's estimates, in millions, for norms, pooling and resizing, which GMACs leave out; None if none."""
    if not model.cost.other:
        return None
    estimates = ", ".join(f"{operation} {fixed(count / 1e6, 3)}" for operation, count in model.cost.other.items())
    return f"apart from these, {model.name}, M by fvcore's estimate: {estimates}"


def not_counted(model: ModelCost) -> str | None:
    """Returns a line that says why a model is not counted; None if it is."""
    reason = model.cost.not_counted
    if reason is None:
        return None
    return f"not counted, {model.name}: {reason}" + ("" if reason == DEPENDS else "; see engine/cost/ops.py")


def assumed_classes(models: Mapping[str, ModelSettings]) -> str | None:
    """Returns a note on models whose number of classes is not given, so that a default is used; None if there are none.

    Args:
        models: name -> settings.
    """
    assumed = [f"{settings.classes} for {name}" for name, settings in models.items() if settings.num_classes is None]
    return f"number of classes not given, assumed: {', '.join(assumed)}; set model.num_classes=N" if assumed else None
