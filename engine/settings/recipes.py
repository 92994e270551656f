"""Recipes: settings that suit a mode of fine-tuning, used where no file and no override gives another value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A head that starts from random weights needs a larger learning rate than the pretrained weights below it can take:
# zoo/squeezenet with mode: head on 406 images of RSSCN7, 10 epochs, has 74.94 % at 1e-3 and 47.62 % at 5e-5 (399 test
# images). The rates of lora and full are the usual ones for such models; they were not searched for.
RECIPES: dict[str, dict[str, Any]] = {
    "head": {"train": {"lr": 1e-3}},
    "gradual": {"train": {"lr": 1e-3}},  # only a reference: every group has a rate of its own
    "lora": {"train": {"lr": 2e-4}},
    "full": {"train": {"lr": 5e-5}},
}


def recipe_for(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe of the mode that unchecked settings choose; empty without fine-tuning or for a wrong mode."""
    finetune = values.get("finetune")
    mode = finetune.get("mode") if isinstance(finetune, Mapping) else None
    return RECIPES.get(mode, {}) if isinstance(mode, str) else {}
