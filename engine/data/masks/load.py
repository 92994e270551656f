"""The sources of masked images that `data.name` can name."""

from __future__ import annotations

from collections.abc import Callable

from engine.data.masks.arrays import MaskedImages
from engine.data.masks.folder import MaskFolderSettings, load_mask_folder
from engine.data.masks.planted import PlantedSettings, load_planted
from engine.data.settings import ReadSettings

# name -> its settings, and a function of these that returns the images
MASKED: dict[str, tuple[type[ReadSettings], Callable[..., MaskedImages]]] = {
    "planted": (PlantedSettings, load_planted),
    "masks": (MaskFolderSettings, load_mask_folder),
}


def load_masked(data: ReadSettings) -> MaskedImages:
    """Loads the images and masks that the settings name; `size` is set.

    Raises:
        UserError: they are missing or malformed.
    """
    return MASKED[data.name][1](data)
