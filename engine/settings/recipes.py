"""Recipes: settings that suit a mode of fine-tuning, used where no file and no override gives another value."""

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
    """Returns the recipe of the mode that unchecked settings choose; empty without fine-tuning or for a wrong mode.

    Augmentation is one decision, so an `augment:` section in a file replaces that of the recipe as a whole, and so does
    `augment.transforms` on the command line. Other keys on the command line change single values of the recipe.

    Args:
        values: the settings of all files and overrides, unchecked.
        in_files: the sections that the files have.
    """
    finetune, augment = values.get("finetune"), values.get("augment")
    mode = finetune.get("mode") if isinstance(finetune, Mapping) else None
    recipe = RECIPES.get(mode, {}) if isinstance(mode, str) else {}
    own_augmentation = "augment" in in_files or (isinstance(augment, Mapping) and "transforms" in augment)
    return {section: keys for section, keys in recipe.items() if not (section == "augment" and own_augmentation)}
