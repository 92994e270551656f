"""What a file is: formats of images, by the first bytes of a file and by the extension of its name.

Each format that Pillow reads with faults has a module here, which opens its files so that the pixels are right, or
refuses them with what they are.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import BinaryIO

HEAD = 512  # bytes that identify a format

# Formats that are read, with their extensions.
READ = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
CAMERA_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
# Formats that are recognised in order to be refused by name. Extensions that other files have as well, such as .hdr,
# are not among theirs.
FOREIGN = {
    "HEIC": (".heic", ".heif", ".heics", ".heifs", ".hif"),
    "AVIF": (".avif", ".avifs"),
    "JPEG XL": (".jxl",),
    "JPEG-LS": (".jls",),
    "JPEG XR": (".jxr", ".wdp", ".hdp"),
    "camera raw": CAMERA_RAW,
    "DICOM": (".dcm", ".dicom"),
    "NIfTI": (".nii", ".nii.gz"),
    "SVG": (".svg", ".svgz"),
    "EPS": (".eps",),
    "ICO": (".ico", ".cur"),
    "ICNS": (".icns",),
    "PSD": (".psd", ".psb"),
    "GIMP": (".xcf",),
    "PFM": (".pfm",),
    "PAM": (".pam",),
    "OpenEXR": (".exr",),
    "Radiance HDR": (),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
    "FITS": (".fits", ".fts"),
    "DPX": (".dpx",),
    "DjVu": (".djvu",),
    "XPM": (".xpm",),
    "XBM": (".xbm",),
    "WMF": (".wmf",),
    "EMF": (".emf",),
    "MNG": (".mng", ".jng"),
    "BPG": (".bpg",),
    "FLIF": (".flif",),
}
FORMATS = tuple(READ)  # no other format is opened, whatever the name of a file
EXTENSIONS = tuple(extension for group in (READ, FOREIGN) for names in group.values() for extension in names)
BY_NAME = ("camera raw", "DICOM", "SVG", "NIfTI")  # formats whose files need not begin with a signature

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, format
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBPVP8", "WEBP"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (128, b"DICM", "DICOM"),  # before TIFF, which may stand in the 128 bytes in front
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"IIRO", "camera raw"),
    (0, b"IIRS", "camera raw"),
    (0, b"MMOR", "camera raw"),
    (0, b"IIU\0", "camera raw"),
    (0, b"II\x1a\0\0\0HEAPCCDR", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"FOVb", "camera raw"),
    (0, b"\0MRM", "camera raw"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (0, b"%!PS-Adobe", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"icns", "ICNS"),
    (0, b"8BPS", "PSD"),
    (0, b"gimp xcf ", "GIMP"),
    (0, b"PF\n", "PFM"),
    (0, b"Pf\n", "PFM"),
    (0, b"P7\n", "PAM"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"SDPX", "DPX"),
    (0, b"XPDS", "DPX"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"/* XPM */", "XPM"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG"),
    (0, b"\x8bJNG\r\n\x1a\n", "MNG"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
)
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
BRANDS = {  # of a file that begins with a box `ftyp`
    **dict.fromkeys((b"avif", b"avis", b"avio"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"msf1", b"miaf", b"avci", b"avcs", b"j2ki", b"j2is"), "HEIC"),
    b"crx ": "camera raw",
}
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes in bytes; checked because text files may also begin with "BM"
PPM = re.compile(rb"P[1-6](\s+\d+\s+\d+\s|\s+#|\s+\d+\s+#)")  # a size or a comment, because text may begin with "P1"
SVG = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>?\s*)?(<!--.*?-->\s*)*<svg[\s>]", re.S)
TGA_FOOTER = b"TRUEVISION-XFILE.\0"


def has_image_extension(name: str) -> bool:
    """Returns whether a file must be an image according to its extension."""
    return name.lower().endswith(EXTENSIONS)


def identify(file: BinaryIO, name: str) -> str | None:
    """Returns the format of a file that was just opened, as `format_of` does; TGA also by the end of the file."""
    head = file.read(HEAD)
    kind = format_of(head, name)
    if kind is None and _may_be_tga(head):
        file.seek(0, 2)
        file.seek(max(file.tell() - len(TGA_FOOTER), 0))
        kind = "TGA" if file.read() == TGA_FOOTER else None
    return kind


def format_of(head: bytes, name: str = "") -> str | None:
    """Returns the format of a file, one of READ or FOREIGN; None if it is no image, or of an unknown format.

    Args:
        head: the first HEAD bytes of the file, or all of them.
        name: its name. The extension matters only for formats without a signature of their own: TGA, and those in
            BY_NAME.
    """
    for offset, signature, kind in SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    suffix = _suffix(name)
    if head.startswith(TIFF_HEADS):  # most cameras' raw files are TIFF files as well
        return "camera raw" if suffix in CAMERA_RAW or head[8:10] == b"CR" else "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if PPM.match(head):
        return "PPM"
    if SVG.match(head):
        return "SVG"
    if suffix in READ["TGA"] and _may_be_tga(head):
        return "TGA"
    return _by_weak_signature(head) or next((kind for kind in BY_NAME if head and suffix in FOREIGN[kind]), None)


def _suffix(name: str) -> str:
    name = name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else PurePath(name).suffix


def _of_brands(head: bytes) -> str | None:
    """Returns the format that the major brand of a box `ftyp` names, or else one of the compatible brands."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, end, 4))]
    kinds = [BRANDS[brand] for brand in brands if brand in BRANDS]
    if brands[0] in (b"mif1", b"msf1", b"miaf") and "AVIF" in kinds:  # these say only that it is an image
        return "AVIF"
    return kinds[0] if kinds else None


def _may_be_tga(head: bytes) -> bool:
    """Returns whether the fields of a TGA header, which has no signature, are consistent."""
    if len(head) < 18:
        return False
    coloured, kind, map_bits, depth, flags = head[1], head[2], head[7], head[16], head[17]
    width, height = (int.from_bytes(head[at : at + 2], "little") for at in (12, 14))
    fits = (map_bits in (15, 16, 24, 32) and depth in (8, 16)) if kind in (1, 9) else map_bits in (0, 15, 16, 24, 32)
    depths = {1: (8, 16), 2: (15, 16, 24, 32), 3: (1, 8, 16)}.get(kind & 7, ())
    return (
        coloured in (0, 1)
        and kind in (1, 2, 3, 9, 10, 11)
        and (coloured == 1 or kind & 7 != 1)
        and fits
        and depth in depths
        and width > 0
        and height > 0
        and not flags & 0xC0
    )


def _by_weak_signature(head: bytes) -> str | None:
    """Returns the format of a file that begins with few bytes that mean it, if other fields of its header fit."""
    if head.startswith(b"\xff\x0a"):
        return "JPEG XL"
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and len(head) >= 22:
        count, start = int.from_bytes(head[4:6], "little"), int.from_bytes(head[18:22], "little")
        return "ICO" if count and head[9] == 0 and start >= 6 + 16 * count else None
    if (
        head[:1] == b"\x0a"
        and head[1:2] <= b"\5"
        and head[2:3] == b"\1"
        and head[3:4] in (b"\1", b"\2", b"\4", b"\x08")
    ):
        return "PCX"
    if re.match(rb"\x01\xda[\x00\x01][\x01\x02]", head):
        return "SGI"
    if head.startswith(b"#define ") and b"_width " in head:
        return "XBM"
    return None
