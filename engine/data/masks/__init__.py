"""Images whose pixels have classes: planted compositions, or images and masks in folders."""

from engine.data.masks.arrays import IGNORED, Masked, MaskedImages
from engine.data.masks.load import MASKED, load_masked

__all__ = ["IGNORED", "MASKED", "Masked", "MaskedImages", "load_masked"]
