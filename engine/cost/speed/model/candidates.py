"""The models that are timed against each other: one without merging, and one for each merging method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from engine.cost.macs import measure_or_say
from engine.cost.speed.model.variants import UNMERGED
from models.budget import solve
from models.builders import build
from models.formulas import FORMULAS, formula_macs
from models.interface import depends_on_image, merging_method, removed_per_block, without_merging
from models.settings import ModelSettings, UserError


@dataclass(frozen=True)
class Candidate:
    """A model that is timed.

    Attributes:
        settings: its settings, with their budget solved.
        model: the model, with random weights, on the CPU.
        gmacs: billions of multiply-adds of one image; None if they cannot be counted.
    """

    settings: ModelSettings
    model: nn.Module
    gmacs: float | None


def candidates(
    asked: Mapping[str | None, ModelSettings], beside: Mapping[str, ModelSettings] | None = None
) -> dict[str, Candidate]:
    """Builds a model without merging and with it, and others to compare it with.

    Args:
        asked: merging method that the user asks for -> settings of the model with it; None: what the settings say.
        beside: name -> settings of another model, as they are.

    Returns:
        UNMERGED, then the methods that remove tokens -> the model. All have the same random weights. Then the others.

    Raises:
        UserError: the model cannot merge, or a method that was asked for removes no token.
    """
    first = next(iter(asked.values()))
    merging = {}
    for method, settings in asked.items():
        solved = solve(settings)
        model = build(solved)
        if depends_on_image(model):
            raise UserError(
                "merge: the number of tokens depends on the image, and random images are timed here; give r; "
                "tools/zeroshot.py --time measures on real images"
            )
        if sum(removed_per_block(model)):
            merging[str(merging_method(solved))] = (solved, model)
        elif method not in (None, "none"):
            raise UserError(f"merge.method = {method!r}: removes no token; say how many, as in merge.r=8")
    plain = without_merging(first)
    unmerged = build(plain)
    for _, model in merging.values():  # a learned metric has weights that `unmerged` does not have
        model.load_state_dict(unmerged.state_dict(), strict=False)
    built = {UNMERGED: (plain, unmerged), **merging}
    for name, settings in (beside or {}).items():
        solved = solve(settings)
        built[name] = solved, build(solved)
    return {name: Candidate(settings, model, _gmacs(settings, model)) for name, (settings, model) in built.items()}


def _gmacs(settings: ModelSettings, model: nn.Module) -> float | None:
    """Returns the GMACs of one image: by formula, or as traced if there is none; None if they cannot be counted."""
    if settings.name in FORMULAS:
        return sum(formula_macs(settings).values()) / 1e9
    return measure_or_say(model).gmacs
