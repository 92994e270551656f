"""The source `masks`: a folder of images, and beside it a folder of masks, PNG files that hold classes' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from pydantic import AfterValidator, Field

from engine.data.formats import identify
from engine.data.images import open_rgb, square_of, to_square
from engine.data.keyed import PLANT, permutation
from engine.data.masks.arrays import IGNORED, Masked, MaskedImages
from engine.data.names import nfc, on_disk
from engine.data.reading import call_each, raise_unreadable
from engine.data.settings import DataPath, ReadSettings
from engine.data.sources.layout import named_splits
from engine.data.sources.scan import Ignored, image_files
from engine.wording import counted, few
from models.settings import UserError

LAYOUT = "expected PATH/images and PATH/masks with files of the same names, such as images/1.jpg and masks/1.png"
WHOLE_NUMBERS = ("P", "L", "1")  # Pillow's modes of PNG files whose pixels are whole numbers of up to 8 bits


def _different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"{names}: two classes have one name; give each its own")
    return names


Names = Annotated[list[str], AfterValidator(_different)]


class MaskFolderSettings(ReadSettings):
    """`path` is the folder; see load_mask_folder for its layout."""

    name: Literal["masks"] = "masks"
    path: DataPath = Field(description="the folder that holds images and masks")
    classes: Names | None = Field(
        None, min_length=2, max_length=IGNORED, description="names in the order of the masks' values; null: numbers"
    )
    held_out: float = Field(0.4, gt=0, lt=1, description="share of the images for testing if there are no splits")
    seed: int = Field(0, ge=0, lt=2**32, description="of which images are held out")


def load_mask_folder(settings: MaskFolderSettings) -> MaskedImages:
    """Reads PATH/images/** and PATH/masks/**: each image has a mask of its name, whatever their extensions.

    A mask is a PNG file of the image's size, in colours of a palette or in grey, whose values are the numbers of
    classes; 255 is ignored. With images/train and images/test, or images/val, and the same in masks, these are the
    parts. Without, a share is held out. Masks are cropped as images are, and resized to the nearest value.

    Raises:
        UserError: a folder, an image or a mask is missing, cannot be read or does not fit to the other, or a value is
            no class.
    """
    root, where = on_disk(Path(settings.path)), f"data.path = {settings.path!r}"
    for folder in ("images", "masks"):
        if not (root / folder).is_dir():
            raise UserError(f"{where}: no folder {folder!r} in it; {LAYOUT}")
    pairs = _pairs(root, where)
    size = settings.size
    images, masks = torch.zeros(len(pairs), 3, size, size).byte(), torch.zeros(len(pairs), size, size).byte()

    def read(number: int) -> None:
        image = open_rgb(pairs[number][0], settings)
        mask = _read_mask(pairs[number][1], image.size)
        box = square_of(image.size, settings)
        images[number] = torch.from_numpy(to_square(image, settings).transpose(2, 0, 1).copy())
        resized = mask.resize((size, size), Image.Resampling.NEAREST, box=box)
        masks[number] = torch.from_numpy(np.array(resized))

    paths = [mask for _, mask in pairs]
    raise_unreadable(paths, call_each(read, len(pairs)), where, "repair them")
    classes = _class_names(settings, masks, paths, where)
    chosen = _parts(root, pairs, settings, where)
    _check_labelled(masks, chosen, where)
    parts = {
        part: Masked(images[rows], masks[rows], tuple(str(pairs[row][0].relative_to(root)) for row in rows))
        for part, rows in chosen.items()
    }
    return MaskedImages(parts["train"], parts["test"], classes)


def _pairs(root: Path, where: str) -> list[tuple[Path, Path]]:
    """Every image and its mask."""
    found = {}
    for folder in ("images", "masks"):
        files: dict[str, Path] = {}
        for path in image_files(root / folder, where, Ignored()):
            name = nfc(str(path.relative_to(root / folder).with_suffix("")))
            if name in files:
                raise UserError(f"{where}: {folder}/{name} is the name of two files; rename one")
            files[name] = path
        found[folder] = files
    images, masks = found["images"], found["masks"]
    if not images:
        raise UserError(f"{where}: no images in {str(root / 'images')!r}; {LAYOUT}")
    for one, other, kind in ((images, masks, "mask"), (masks, images, "image")):
        if lone := [repr(str(path.relative_to(root))) for name, path in one.items() if name not in other]:
            raise UserError(f"{where}: no {kind} of the same name for {few(lone)} ({len(lone)} of {len(one)}); add it")
    return [(path, masks[name]) for name, path in images.items()]


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """Returns a mask as grey pixels, mode "L", whose values are those of the file.

    Raises:
        ValueError: it is no PNG file of whole numbers up to 255, or has another size than (width, height).
    """
    with open(path, "rb") as file:
        if identify(file, path.name) != "PNG":
            raise ValueError("not a PNG file, whose values are exact; save it as PNG")
        values = _values(file)
    if values.size != size:
        raise ValueError(f"{values.width} x {values.height} pixels, its image has {size[0]} x {size[1]}")
    return values


def _values(file: BinaryIO) -> Image.Image:
    file.seek(0)
    with PngImagePlugin.PngImageFile(file) as image:
        if image.mode not in WHOLE_NUMBERS:
            raise ValueError(f"its pixels are {image.mode}, no classes' numbers; save it in a palette or in 8-bit grey")
        if image.tile and image.tile[0][3] in ("L;2", "L;4"):  # Pillow scales them to 255
            raise ValueError("grey of fewer than 8 bits; save it with 8")
        return Image.fromarray(np.asarray(image).astype(np.uint8))


def _class_names(settings: MaskFolderSettings, masks: torch.Tensor, paths: list[Path], where: str) -> list[str]:
    """The names of the classes; those without names are called by their numbers."""
    values = masks.int().masked_fill(masks == IGNORED, -1).flatten(1).amax(1)  # the largest of each mask
    largest = int(values.max())
    if largest < 0:
        raise UserError(f"{where}: every pixel of every mask is {IGNORED}, which is ignored; give masks with classes")
    if settings.classes is None:
        return [str(number) for number in range(max(largest + 1, 2))]
    count = len(settings.classes)
    wrong = [repr(str(path)) for path, value in zip(paths, values.tolist(), strict=True) if value >= count]
    if wrong:
        have = counted(len(wrong), "mask has", "masks have")
        raise UserError(
            f"{where}: {have} values up to {largest}, and data.classes names 0 to {count - 1}: {few(wrong)}; name all "
            f"classes, or use {IGNORED} for pixels without one"
        )
    return settings.classes


def _check_labelled(masks: torch.Tensor, chosen: dict[str, list[int]], where: str) -> None:
    """Raises UserError where there is nothing to tell apart in training, or nothing to measure in testing."""
    train, test = ({int(v) for v in masks[chosen[part]].unique()} - {IGNORED} for part in ("train", "test"))
    if len(train) < 2:
        has = f"the single class {train.pop()}" if train else "no class"
        raise UserError(f"{where}: the masks of its training images have {has}; give masks with two classes or more")
    if not test:
        raise UserError(f"{where}: every pixel of the test images' masks is {IGNORED}, which is ignored; label some")


def _parts(
    root: Path, pairs: list[tuple[Path, Path]], settings: MaskFolderSettings, where: str
) -> dict[str, list[int]]:
    """The positions of the images for training and for testing."""
    splits = named_splits(root / "images", where)
    test = splits.get("test", splits.get("val"))
    if "train" in splits and test is not None:
        folders = {"train": splits["train"], "test": test}
        parts = {
            part: [number for number, (image, _) in enumerate(pairs) if image.is_relative_to(folder)]
            for part, folder in folders.items()
        }
        if empty := [str(folders[part]) for part, rows in parts.items() if not rows]:
            raise UserError(f"{where}: no images in {empty[0]!r}; add some")
        return parts
    order = permutation(len(pairs), PLANT, settings.seed).tolist()
    held_out = round(settings.held_out * len(pairs))
    if not 0 < held_out < len(pairs):
        images = counted(len(pairs), "image")
        raise UserError(f"data.held_out = {settings.held_out:g}: of {images} none is left for training or testing")
    return {"train": sorted(order[held_out:]), "test": sorted(order[:held_out])}
