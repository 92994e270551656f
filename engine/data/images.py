"""Reads one image file: decoded, turned upright, converted to RGB, and cropped or resized to one size."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageColor,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from engine.data.formats import FOREIGN, FORMATS, identify
from engine.data.formats.jpeg2000 import open_jpeg2000
from engine.data.formats.png import too_large, without_texts
from engine.data.formats.ppm import open_ppm
from engine.data.formats.tga import open_tga
from engine.data.formats.tiff import full_range, open_tiff
from engine.data.settings import ReadSettings
from engine.data.shards.members import open_member

Image.MAX_IMAGE_PIXELS = None  # some formats would check this limit, too, whatever data.max_pixels is

# Files are opened without their names: Pillow would map those that it can open by name into memory, and would then turn
# some of them wrongly; the process would also be killed if such a file became shorter.
READERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": open_tiff,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": open_ppm,
    "JPEG2000": open_jpeg2000,
    "TGA": open_tga,
}
assert tuple(READERS) == FORMATS
SEVERAL = ("GIF", "WEBP", "TIFF", "PNG")  # formats of files that can hold several images


class Facts(NamedTuple):
    """Facts about an image file."""

    format: str  # one of FORMATS
    mode: str  # Pillow's name for the kind of pixels, such as RGB or L
    width: int  # pixels, as stored
    height: int
    several: bool  # whether the file holds more than one image; only the first is read


def open_rgb(path: Path, settings: ReadSettings) -> Image.Image:
    """Reads an image upright, as 8-bit RGB, at its original size. If a file holds several images, the first is read.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, and transparent areas are filled with
    data.background.

    Raises:
        DecompressionBombError: more than data.max_pixels pixels, according to the header.
        ValueError: the file is empty or not a regular file, or its pixels have neither 8 nor 16 bits.
        Exception: whatever Pillow raises for a file that it cannot decode.
    """
    return read_with_facts(path, settings)[0]


def read_with_facts(path: Path, settings: ReadSettings) -> tuple[Image.Image, Facts]:
    """Reads an image as open_rgb does, and returns it with the facts about its file.

    The content of the file determines its format, whatever its name. The format's reader is called directly, because
    Image.open has a pixel limit of its own, which is global to the process, and opens many more formats.
    """
    with opened(path) as file:
        kind = identify(file, path.name)
        if kind == "PFM":
            raise ValueError("floating-point pixels (PFM); save it with 8 or 16 bits")
        if kind in FOREIGN:
            raise ValueError(f"{kind}; convert it to JPEG or PNG")
        if kind is None:
            raise UnidentifiedImageError if file.seek(0, os.SEEK_END) else ValueError("empty file")
        try:
            return _read(kind, file, settings)
        except ValueError as error:
            if not too_large(error):
                raise
            return _read(kind, without_texts(file), settings)


def _read(kind: str, file: BinaryIO, settings: ReadSettings) -> tuple[Image.Image, Facts]:
    file.seek(0)
    with READERS[kind](file) as image:
        width, height = image.size
        if width * height > settings.max_pixels:
            raise Image.DecompressionBombError(f"{width} x {height} pixels")
        facts = Facts(kind, image.mode, width, height, kind in SEVERAL and _several(image))
        _scale_clear(image)
        image.load()
        with suppress(Exception):  # the pixels can be intact even if the EXIF data are damaged
            ImageOps.exif_transpose(image, in_place=True)
        if kind == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
            image.putalpha(255)  # as in browsers: programs that know no transparency leave it at 0
        return to_rgb(full_range(image), settings.background), facts


def has_image(path: Path) -> bool:
    """Returns whether a file is an image in one of FORMATS or FOREIGN, according to its content.

    Raises:
        OSError, ValueError: the file cannot be opened, or is not a regular file.
    """
    with opened(path) as file:
        return identify(file, path.name) is not None


def opened(path: Path) -> BinaryIO:
    """Opens an image file, also one in a tar file (see `engine.data.shards.members`).

    Raises:
        OSError, ValueError: it cannot be opened, or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except NotADirectoryError:
        return open_member(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise ValueError(f"broken link to {os.readlink(path)!r}") from None
        raise
    if not stat.S_ISREG(mode):
        raise ValueError("not a file")  # reading a pipe would never end
    return open(path, "rb")


def _several(image: Image.Image) -> bool:
    """Returns whether a file that was just opened holds more than one image; damage in later images is ignored."""
    with suppress(Exception):
        return bool(image.is_animated)
    return False


def _scale_clear(image: Image.Image) -> None:
    """Scales a PNG's transparent value as Pillow scales pixels of 2, 4 and 16 bits; must be called before load()."""
    clear, kind = image.info.get("transparency"), image.tile[0][3] if image.format == "PNG" and image.tile else None
    if isinstance(clear, int) and kind in ("L;2", "L;4"):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[kind]
    elif isinstance(clear, tuple) and kind == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def to_square(image: Image.Image, settings: ReadSettings) -> np.ndarray:
    """Resizes an image to data.size, uint8 (size, size, 3), bicubic and antialiased.

    With data.fit "crop" the square in the middle is used, whose side is data.crop_pct times the shorter side; with
    "squash" the whole image is used, and its aspect ratio changes.
    """
    size = settings.size
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=square_of(image.size, settings)))


def square_of(shape: tuple[int, int], settings: ReadSettings) -> tuple[float, float, float, float]:
    """Returns the part of an image (width, height) that `to_square` resizes: left, top, right and bottom, pixels."""
    size, (width, height) = settings.size, shape
    side_x, side_y = width, height
    if settings.fit == "crop":
        side_x = side_y = min(width, height) * settings.crop_pct
    left, top = (width - side_x) / 2, (height - side_y) / 2
    box = (left, top, left + side_x, top + side_y)
    if (side_x, side_y) == (size, size):
        box = tuple(int(edge) for edge in box)  # half a pixel of offset would blur an image that needs no resizing
    return box


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Converts to 8-bit RGB. Pillow's own conversion saturates 16-bit grey and makes transparent red opaque."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey; "I" in older versions of Pillow
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels; save it with 8 or 16 bits")
        rgb = Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
        clear = image.info.get("transparency")  # a value of grey, in PNG
        if isinstance(clear, int):
            rgb.paste(ImageColor.getrgb(background)[:3], mask=Image.fromarray(np.uint8(255) * (grey == clear)))
        return rgb
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def relative_paths(paths: Sequence[str]) -> list[str]:
    """Returns paths relative to the innermost folder that contains all of them, wherever that folder is."""
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) else ""
    return [os.path.relpath(path, root) if root else path for path in paths]


def reason(error: Exception) -> str:
    """Returns a few words, without the path, that say why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error}, more than data.max_pixels"
    if isinstance(error, SyntaxError) and str(error.msg).startswith("cannot handle"):  # of JPEG
        return f"{error.msg}; save it with 8 bits, in grey or RGB"
    if isinstance(error, SyntaxError):  # what Pillow raises for an inconsistent header
        return "damaged header" + (f": {error.msg}" if error.__cause__ is None else "")
    if isinstance(error, TypeError | LookupError):  # a field of another type than Pillow and we expect, or none
        return "damaged header"
    if str(error).startswith("decoder error"):  # of libtiff
        return "damaged pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which the message names already
    return (str(error).splitlines() or [type(error).__name__])[0]
