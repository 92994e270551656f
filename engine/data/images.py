"""Image files as they come: decoded, turned upright, made RGB, brought to one size."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from engine.data.arrays import Arrays, RawData
from engine.data.settings import FileSettings
from models.settings import UserError

log = logging.getLogger("hybridmerge.data")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # nothing else is opened, whatever a file is called
NAMED = 3  # files that an error names


def read_splits(
    samples: Mapping[str, tuple[Sequence[Path], Tensor]],
    classes: list[str],
    settings: FileSettings,
    where: str,
    fix: str = "repair or delete them",
) -> RawData:
    """Decodes all splits at once.

    Args:
        samples: of "train" and perhaps "val" and "test": N files, and labels, int64 (N,) or float32 (N, K).
        classes: names in the order of the labels.
        settings: size and fit; the size is known by now.
        where: start of an error, such as "data.path = 'scenes'".
        fix: end of an error: what to do about files that cannot be read.

    Raises:
        UserError: see read_images.
    """
    assert settings.size is not None, "data.size: null stands for model.img_size, which is put in before data is built"
    paths = [path for files, _ in samples.values() for path in files]
    images = read_images(paths, settings.size, settings.fit, where, fix)
    parts = images.split([len(files) for files, _ in samples.values()])
    splits = {split: Arrays(part, samples[split][1]) for split, part in zip(samples, parts)}
    return RawData(splits["train"], splits.get("test"), classes, val=splits.get("val"))


def read_images(paths: Sequence[Path], size: int, fit: str, where: str, fix: str) -> Tensor:
    """All images, uint8 (N, 3, size, size), in the order of `paths`; decoded by a thread for each processor.

    Raises:
        UserError: files that cannot be read: how many, the first of them with the reason, and `fix`; or more images
            than memory holds.
    """
    try:
        images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    except RuntimeError:
        raise UserError(f"{where}: {len(paths)} images of {size} x {size} pixels take "
                        f"{len(paths) * 3 * size * size / 1e9:.1f} GB of memory, more than there is; "
                        "set data.size to less") from None
    pixels = images.numpy()  # shares its memory

    def read(i: int) -> str | None:
        try:
            pixels[i] = read_image(paths[i], size, fit).transpose(2, 0, 1)
        except Exception as error:  # damaged files make PIL's decoders raise nearly anything
            return _reason(error)
        return None

    log.info("reading %d image files", len(paths))
    # PIL warns of what does not keep it from decoding, and of too many pixels, which read_image refuses.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        reasons = list(pool.map(read, range(len(paths))))
    bad = [f"{str(path)!r} ({reason})" for path, reason in zip(paths, reasons) if reason is not None]
    if bad:
        raise UserError(f"{where}: {len(bad)} of {len(paths)} images cannot be read: {few(bad)}; {fix}")
    return images


def read_image(path: Path, size: int, fit: str) -> np.ndarray:
    """One image, uint8 (size, size, 3); the first one of a file that holds several.

    The EXIF orientation is applied; 16-bit grey is scaled to 8 bits; what is transparent lies on white. Resizing is
    bicubic and antialiased: of the largest square in the middle ("crop"), or of the whole, whatever its shape
    ("squash").

    Raises:
        DecompressionBombError: more pixels than PIL's limit.
        ValueError: pixels that are not 8 or 16 bits.
        Exception: whatever PIL raises for a file that it cannot decode.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError  # PIL itself warns only, up to twice as many
        upright = to_rgb(ImageOps.exif_transpose(image))
    width, height = upright.size
    side_x, side_y = (min(width, height),) * 2 if fit == "crop" else (width, height)
    left, top = (width - side_x) / 2, (height - side_y) / 2
    box = (left, top, left + side_x, top + side_y)
    if (side_x, side_y) == (size, size):
        box = tuple(int(edge) for edge in box)  # half a pixel would blur what needs no resizing
    return np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. PIL's own conversion saturates 16-bit grey and drops transparency: transparent red becomes red."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey; "I" in older versions of PIL
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels; save it with 8 or 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension."""
    return name.lower().endswith(EXTENSIONS)


def few(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than PIL's limit of {Image.MAX_IMAGE_PIXELS}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which is named already
    return (str(error).splitlines() or [type(error).__name__])[0]
