"""Recipes: settings that suit pretrained weights, used where no file and no override gives another value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Crops of half the image's area and more, and mirror images.
LIGHT = {"scale": 0.5, "flip": True}

# A head that starts from random weights needs a larger learning rate than the pretrained weights below it can take, and
# it learns from features that are computed once as long as nothing is augmented. docs/finetuning.md has measurements.
# The rates of lora and full are the usual ones for such models; they were not searched for.
RECIPES: dict[str, dict[str, Any]] = {
    "head": {"train": {"lr": 1e-3}},
    "gradual": {"train": {"lr": 1e-3}, "augment": LIGHT},  # lr is only a reference: every group has a rate of its own
    "lora": {"train": {"lr": 2e-4}, "augment": LIGHT},
    "full": {"train": {"lr": 5e-5}, "augment": LIGHT},
}


def recipe_for(values: Mapping[str, Any], in_files: Collection[str]) -> dict[str, Any]:
    """Returns the recipe of the mode of fine-tuning that unchecked settings choose; empty if they train from scratch.

    Without a `finetune:` section all parameters are trained, so a model that starts from weights has the recipe of
    `full`. A mode that does not exist has no recipe.

    Augmentation is one decision, so an `augment:` section in a file replaces that of the recipe as a whole, and so does
    `augment.transforms` on the command line. Other keys on the command line change single values of the recipe.

    Args:
        values: the settings of all files and overrides, unchecked.
        in_files: the sections that the files have.
    """
    recipe = RECIPES.get(_mode(values), {})
    augment = values.get("augment")
    own_augmentation = "augment" in in_files or (isinstance(augment, Mapping) and "transforms" in augment)
    return {section: keys for section, keys in recipe.items() if not (section == "augment" and own_augmentation)}


def _mode(values: Mapping[str, Any]) -> str:
    """Returns the mode of fine-tuning that unchecked settings choose; "" if they choose none, or none that is text."""
    finetune, model = values.get("finetune"), values.get("model")
    if finetune is None:
        return "full" if isinstance(model, Mapping) and model.get("weights") is not None else ""
    mode = finetune.get("mode") if isinstance(finetune, Mapping) else None
    return mode if isinstance(mode, str) else ""
