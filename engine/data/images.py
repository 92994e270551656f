"""One image file as it comes: decoded, turned upright, made RGB, brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.data.settings import FileSettings

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # nothing else is opened, whatever a file is called
NAMED = 3  # files that an error names


def read_image(path: Path, settings: FileSettings) -> np.ndarray:
    """One image as a model is evaluated on it, uint8 (size, size, 3); see open_rgb and to_square for how."""
    assert settings.size is not None
    return to_square(open_rgb(path, settings), settings)


def open_rgb(path: Path, settings: FileSettings) -> Image.Image:
    """One image, upright, 8-bit RGB, at its own size; the first one of a file that holds several.

    The EXIF orientation is applied; 16-bit grey is scaled to 8 bits; what is transparent lies on data.background.

    Raises:
        DecompressionBombError: more than data.max_pixels pixels, by its header.
        ValueError: pixels that are not 8 or 16 bits.
        Exception: whatever PIL raises for a file that it cannot decode.
    """
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > settings.max_pixels:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        return to_rgb(ImageOps.exif_transpose(image), settings.background)


def to_square(image: Image.Image, settings: FileSettings) -> np.ndarray:
    """An image brought to data.size, uint8 (size, size, 3), bicubic and antialiased.

    Either the square in the middle whose side is data.crop_pct of the shorter side ("crop"), or the whole, whatever its
    shape ("squash").
    """
    size, (width, height) = settings.size, image.size
    side_x, side_y = width, height
    if settings.fit == "crop":
        side_x = side_y = min(width, height) * settings.crop_pct
    left, top = (width - side_x) / 2, (height - side_y) / 2
    box = (left, top, left + side_x, top + side_y)
    if (side_x, side_y) == (size, size):
        box = tuple(int(edge) for edge in box)  # half a pixel would blur what needs no resizing
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
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
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension."""
    return name.lower().endswith(EXTENSIONS)


def few(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}, more than data.max_pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which is named already
    return (str(error).splitlines() or [type(error).__name__])[0]
