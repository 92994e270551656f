"""TIFF files: read through libtiff, or refused with what they are.

Pillow's own reader of uncompressed files scrambles some of them: 16-bit channels that are stored one after another, and
images to be turned, if it maps them into memory. libtiff reads all of them.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImagePalette, TiffImagePlugin

TiffImagePlugin.READ_LIBTIFF = True  # uncompressed files, too

# Tags.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 254, 258, 259, 262, 277, 284
COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 320, 338, 339, 50706

WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
SENSOR = (32803, 34892)  # values of PHOTOMETRIC: what a camera's sensor measured
SIGNED, FLOAT, COMPLEX = (2,), (3,), (5, 6)  # values of SAMPLE_FORMAT
PREVIEW = 1  # a bit of SUBFILE
CCITT_RLEW = 32771  # a compression with which Pillow writes and reads different pixels


def _libtiff() -> ctypes.CDLL | None:
    """Returns Pillow's libtiff, kept from printing to stderr; None if it cannot be found.

    Pillow raises an error for everything that prevents decoding.
    """
    with suppress(AttributeError, OSError):  # where libtiff is not a shared library
        library = ctypes.CDLL(Image.core.__file__)  # finds the functions of the libraries that it is linked to
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
        return library
    return None


LIBTIFF = _libtiff()


def open_tiff(file: BinaryIO) -> TiffImagePlugin.TiffImageFile:
    """Opens a TIFF file; its pixels are read later.

    Raises:
        ValueError: the file has more channels than a colour image, its samples are signed, floating-point, or of more
            than 16 bits, or its first image is a preview; the message says what it is.
        Exception: whatever Pillow raises for a damaged file.
    """
    tags = _directory(file)
    _refuse(tags)
    file.seek(0)
    try:
        image = TiffImagePlugin.TiffImageFile(file)
    except SyntaxError as error:
        if error.msg in ("unknown pixel mode", "unknown data organization"):
            raise ValueError(_other_kind(tags)) from None
        raise
    if image.mode in ("P", "PA") and max(tags[COLOUR_MAP]) < 256:  # colours of 8 bits, which some programs write
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[COLOUR_MAP]))
    return image


def _directory(file: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Returns the tags of a file's first image."""
    file.seek(0)
    head = file.read(8)
    if head.startswith(b"MM\0+"):
        raise ValueError("BigTIFF in big-endian byte order, which is not read; save it in another")
    if head.startswith(b"II+\0"):  # BigTIFF
        head += file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _refuse(tags: Any) -> None:
    """Raises a ValueError that says what an image is, if it would be read wrongly or not at all."""
    photometric, compression = tags.get(PHOTOMETRIC, 0), tags.get(COMPRESSION, 1)
    if DNG_VERSION in tags or photometric in SENSOR:
        raise ValueError("camera raw; convert it to JPEG or PNG")
    if isinstance(tags.get(SUBFILE), int) and tags[SUBFILE] & PREVIEW:
        raise ValueError("its first image is a preview, as in cameras' raw files; convert it to JPEG or PNG")
    if isinstance(compression, int) and not _unpacks(compression):
        raise ValueError(f"compression {compression}, which is not read; save it with LZW or without compression")
    bands, bits = _bands(tags), max(tags.get(BITS, (1,)))
    extra = bands - CHANNELS.get(photometric, 1)
    if extra > 1 or (extra and bands == 2 and 0 in tags.get(EXTRA_SAMPLES, (0,))):  # one beside RGB is mostly a mask
        raise ValueError(f"{bands} bands; save it as grey or RGB")
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    if formats & set(COMPLEX):
        raise ValueError("complex numbers as pixels; save it with 8 or 16 bits")
    if formats & set(FLOAT):
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if formats & set(SIGNED):
        raise ValueError(f"signed {bits}-bit pixels; save it with 8 or 16 bits, without a sign")
    if bits > 16:
        raise ValueError(f"{bits}-bit pixels; save it with 8 or 16 bits")
    if tags.get(PLANAR) == 2 and not _planes_are_read(photometric, extra, tags.get(EXTRA_SAMPLES, ())):
        raise ValueError(f"{bands} bands that are stored one after another (PlanarConfiguration 2); save it as RGB")


def _unpacks(compression: int) -> bool:
    """Returns whether Pillow knows a compression, and its libtiff was built with it."""
    if compression not in TiffImagePlugin.COMPRESSION_INFO or compression == CCITT_RLEW:
        return False
    return LIBTIFF is None or bool(LIBTIFF.TIFFIsCODECConfigured(compression))


def _bands(tags: Any) -> int:
    """Returns the number of values of a pixel, which old-style JPEG compression leaves out."""
    return tags.get(SAMPLES, 3 if tags.get(COMPRESSION) == 6 and tags.get(PHOTOMETRIC) in (RGB, YCBCR) else 1)


def _planes_are_read(photometric: int, extra: int, kinds: tuple[int, ...]) -> bool:
    """Returns whether Pillow puts channels that are stored one after another where they belong."""
    if photometric == LAB:
        return False
    if photometric in (WHITE_IS_ZERO, GREY, PALETTE):
        return not extra
    return extra <= len(kinds)


def _other_kind(tags: Any) -> str:
    """Returns what a kind of pixels is that Pillow does not know."""
    bits, bands = "/".join(map(str, sorted(set(tags.get(BITS, (1,)))))), _bands(tags)
    kind = f"{bands} band{'s' * (bands > 1)} of {bits} bits with PhotometricInterpretation {tags.get(PHOTOMETRIC, 0)}"
    return f"a kind of TIFF that is not read ({kind}); save it as grey or RGB with 8 bits"


def full_range(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey of a TIFF file to 0 (black) to 65535; Pillow leaves 12 bits, and white as 0."""
    if image.format != "TIFF" or not image.mode.startswith("I;16"):
        return image
    tags = image.tag_v2
    most = 2 ** tags.get(BITS, (16,))[0] - 1
    grey = np.asarray(image).astype(np.int64)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = most - grey
    return Image.fromarray((grey * 65535 // most).astype(np.uint16))
