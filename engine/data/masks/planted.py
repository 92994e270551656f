"""The source `planted`: compositions of photographs, in which the class of every pixel is known.

A composition is a photograph as the background, and several others that are pasted onto it in ellipses and polygons,
later ones over earlier ones. All are of different classes, and a pixel's class is that of the photograph that it comes
from. Compositions are made in memory, and each depends only on (seed, part, number).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from pydantic import Field, field_validator

from engine.data.arrays import RawData, Split
from engine.data.keyed import PLANT, hash64, permutation, uniform
from engine.data.masks.arrays import MOST_CLASSES, Masked, MaskedImages
from engine.data.reading import read_source
from engine.data.settings import SplitSettings
from engine.data.sources.folder import FolderSettings, find_folder
from engine.data.split import with_test_set
from models.settings import UserError

PARTS = {"train": 0, "test": 1}
SIDES = (0.3, 0.6)  # least and largest side of the box around a region, as a share of the image's
CORNERS = (5, 9)  # fewest and most of a polygon
RADII = (0.65, 1.0)  # of a polygon's corners, as a share of the ellipse's around it


class PlantedSettings(FolderSettings):
    """`path` is a folder of photographs with a folder for each class, as of the dataset `folder`."""

    name: Literal["planted"] = "planted"
    train: int = Field(300, ge=1, le=1_000_000, description="compositions to fit")
    test: int = Field(200, ge=1, le=1_000_000, description="compositions to measure on, of other photographs")
    objects: list[int] = Field(
        [2, 4], min_length=2, max_length=2, description="fewest and most photographs pasted onto the background"
    )
    held_out: float = Field(
        0.4, gt=0, lt=1, description="share of each class's photographs for testing if the folder has no test set"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the compositions, and of which photographs are held out")

    @field_validator("objects")
    @classmethod
    def _in_order(cls, objects: list[int]) -> list[int]:
        if not 1 <= objects[0] <= objects[1] <= MOST_CLASSES:
            raise ValueError(f"{objects}: must be the fewest and the most, as in [2, 4]")
        return objects


def load_planted(settings: PlantedSettings) -> MaskedImages:
    """Makes the compositions; those for testing are of photographs that those for training do not show.

    The folder's own test set, or else its validation set, is used for testing. Without either, a share of each class is
    held out, and copies of a photograph stay together.

    Raises:
        UserError: as `find_folder` and `read_source`; fewer classes than a composition shows, or a class without a
            photograph for testing.
    """
    where = f"data.path = {settings.path!r}"
    raw = read_source(find_folder(settings), settings)
    if len(raw.classes) > MOST_CLASSES:
        raise UserError(f"{where}: {len(raw.classes)} classes; masks have {MOST_CLASSES} at most")
    if len(raw.classes) <= settings.objects[1]:
        raise UserError(
            f"data.objects = {settings.objects}: up to {settings.objects[1]} objects and a background are of "
            f"different classes, and {where} has {len(raw.classes)}; give at most {len(raw.classes) - 1}"
        )
    parts = _photographs(raw, settings, where)
    made = {part: _compositions(photographs, part, settings) for part, photographs in parts.items()}
    return MaskedImages(made["train"], made["test"], raw.classes)


def _photographs(raw: RawData, settings: PlantedSettings, where: str) -> dict[str, Split]:
    """The photographs for training and for testing."""
    if raw.test is None and raw.val is not None:
        test = raw.val
    else:
        raw = with_test_set(raw, SplitSettings(test=settings.held_out, test_seed=settings.seed))
        test = raw.test
    parts = {"train": raw.train, "test": test}
    for part, split in parts.items():
        there = set(split.labels.tolist())
        if missing := [repr(name) for number, name in enumerate(raw.classes) if number not in there]:
            raise UserError(
                f"{where}: no photograph of class {missing[0]} for the {part} compositions; add some, or change "
                f"data.held_out = {settings.held_out:g}"
            )
    return parts


def _compositions(photographs: Split, part: str, settings: PlantedSettings) -> Masked:
    """All compositions of a part."""
    by_class = [np.flatnonzero(photographs.labels.numpy() == number) for number in range(_classes(photographs))]
    count, size = {"train": settings.train, "test": settings.test}[part], settings.size
    images, masks = torch.zeros(count, 3, size, size, dtype=torch.uint8), torch.zeros(count, size, size).byte()
    for number in range(count):
        key = (PLANT, settings.seed, PARTS[part], number)
        image, mask = _composition(photographs, by_class, key, settings.objects)
        images[number] = torch.from_numpy(np.array(image).transpose(2, 0, 1))
        masks[number] = torch.from_numpy(mask)
    return Masked(images, masks, tuple(f"{part} {number}" for number in range(count)))


def _classes(photographs: Split) -> int:
    return int(photographs.labels.max()) + 1


def _composition(
    photographs: Split, by_class: list[np.ndarray], key: tuple[int, ...], objects: list[int]
) -> tuple[Image.Image, np.ndarray]:
    """One composition, and its mask, uint8 (H, W).

    Args:
        photographs: of which it is made.
        by_class: positions of the photographs of each class.
        key: of its random numbers.
        objects: fewest and most photographs pasted onto the background.
    """
    fewest, most = objects
    count = fewest + int(hash64(*key, 0)[0] % np.uint64(most - fewest + 1))
    chosen = permutation(len(by_class), *key, 1)[: count + 1]
    image, mask = None, None
    for place, number in enumerate(chosen.tolist()):
        among = by_class[number]
        photograph = _photograph(photographs, int(among[int(hash64(*key, 2, place)[0] % np.uint64(len(among)))]))
        if image is None:
            image, mask = photograph, np.full(photograph.size[::-1], number, np.uint8)
            continue
        region = draw_region(image.size[0], key, place)
        fitted = ImageOps.fit(photograph, region.shape.size, Image.Resampling.BICUBIC)
        image.paste(fitted, region.corner, region.shape)
        left, top = region.corner
        inside = np.asarray(region.shape) > 0
        mask[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = number
    return image, mask


def _photograph(photographs: Split, position: int) -> Image.Image:
    pixels = photographs.read(torch.tensor([position]))[0]
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


class Region(NamedTuple):
    """Where a photograph is pasted."""

    corner: tuple[int, int]  # left and top of the box around the region, pixels
    shape: Image.Image  # mode "L", of the box's size: 255 inside the region, 0 outside


def draw_region(size: int, key: tuple[int, ...], place: int) -> Region:
    """Draws an ellipse or a polygon that lies inside an image of size x size pixels.

    Args:
        size: height and width of the image.
        key: of the composition.
        place: the object's number in it.
    """
    draws = uniform(*key, 3, place, np.arange(6 + 2 * CORNERS[1]))
    least, largest = (max(1.0, share * size) for share in SIDES)
    width, height = (round(least + (largest - least) * share) for share in draws[:2])
    corner = tuple(int(share * (size - side + 1)) for share, side in zip(draws[2:4], (width, height), strict=True))
    shape = Image.new("L", (width, height))
    if draws[4] < 0.5:
        ImageDraw.Draw(shape).ellipse((0, 0, width - 1, height - 1), fill=255)
        return Region(corner, shape)
    corners = CORNERS[0] + int(draws[5] * (CORNERS[1] - CORNERS[0] + 1))
    turns, lengths = draws[6 : 6 + corners], draws[6 + CORNERS[1] : 6 + CORNERS[1] + corners]
    angles = 2 * np.pi * (np.arange(corners) + 0.8 * turns) / corners  # in order, so that edges do not cross
    radii = (RADII[0] + (RADII[1] - RADII[0]) * lengths) / 2
    xs, ys = (1 + 2 * radii * np.cos(angles)) / 2 * (width - 1), (1 + 2 * radii * np.sin(angles)) / 2 * (height - 1)
    ImageDraw.Draw(shape).polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=255)
    return Region(corner, shape)
