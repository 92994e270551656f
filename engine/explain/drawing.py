"""Draws heat maps over photographs: one image with the model's answer, or a sheet of images and methods."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import ImageFont
from torch import Tensor
from torch.nn import functional as F

from engine.figures.sheet import GAP, Sheet, height_of
from engine.wording import counted, shown

SEQUENTIAL = matplotlib.colormaps["inferno"]  # equal steps look equally large, also in grey
DIVERGING = matplotlib.colormaps["RdBu_r"].resampled(257)  # an odd number of colours: the one in the middle is for zero
OPACITY = 0.6  # of the colours over the photograph
CONSTANT = 1e-5  # of the largest magnitude: smaller differences are the rounding of float32
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
TOP = 5  # classes
CELL, PICTURE = 2.15, 2.0  # inches, on a contact sheet: width of a column, and side of a picture
SIZE = 8  # points
LETTER = 0.0085  # inches that a letter takes for each point of its size, rather more than less


class Heat(NamedTuple):
    """An explanation to be drawn.

    Attributes:
        title: what it is, such as "gradcam: temple".
        relevance: (h, w), any float: patches, cells of a map, or pixels.
        signed: whether negative values are evidence against the class.
        note: what the method says besides, such as "R^2 0.83".
    """

    title: str
    relevance: Tensor
    signed: bool = False
    note: str = ""


class Picture(NamedTuple):
    """A picture that stands on a contact sheet beside maps, such as what was merged.

    Attributes:
        title: what it is.
        pixels: uint8 (3, H, W).
        note: what stands above it.
    """

    title: str
    pixels: Tensor
    note: str = ""


class Row(NamedTuple):
    """A row of a contact sheet: the label of a photograph, uint8 (3 or 1, H, W), and its explanations."""

    label: str
    image: Tensor
    heats: Sequence[Heat | Picture]


def overlay(image: Tensor, relevance: Tensor, signed: bool = False, smooth: bool = False) -> Tensor:
    """Blends a map, in colour, over a photograph in grey.

    A map without signs is scaled to 0..1 by its own minimum and maximum. One with signs is divided by its largest
    magnitude, so that zero is neutral, and red and blue of the same depth are as strong. A map that shows nothing, see
    `nothing_shown`, gets no colours instead of amplified noise; a constant one with signs has the colour of its sign.

    Args:
        image: uint8 (3, H, W), or (1, H, W) of grey.
        relevance: (h, w).
        signed: whether negative values are evidence against the class.
        smooth: resize the map to the image bilinearly; otherwise each value fills its patch.

    Returns:
        RGB, uint8 (H, W, 3), on the CPU.
    """
    values = relevance.detach().cpu().float()
    grey = (
        torch.einsum("chw,c->hw", image.expand(3, -1, -1).cpu().float(), torch.tensor(LUMINANCE))
        .unsqueeze(2)
        .expand(-1, -1, 3)
    )
    if not bool(values.isfinite().all()) or (nothing_shown(values) and not signed):
        return grey.round().byte()
    place = _resized(_scaled(values, signed), image, smooth).numpy()  # in the colour map
    colours = torch.from_numpy((DIVERGING if signed else SEQUENTIAL)(place)[..., :3])
    return (255 * OPACITY * colours + (1 - OPACITY) * grey).round().byte()


def nothing_shown(relevance: Tensor) -> str:
    """Says in words why a map (h, w) tells no place from another; an empty text for a map that does."""
    values = relevance.detach().float()
    if not bool(values.isfinite().all()):
        return "not drawn: some values are nan or infinite"
    largest = float(values.abs().max())
    if largest == 0:
        return "no relevance anywhere"
    if float(values.max() - values.min()) <= CONSTANT * largest:
        return "the same relevance everywhere"
    return ""


def figure_of(
    image: Tensor,
    heat: Heat,
    probabilities: Tensor,
    names: Sequence[str],
    target: int | None = None,
    caption: Sequence[str] = (),
    smooth: bool = False,
) -> Figure:
    """Draws one image's explanation: the photograph, the map over it, and the classes that the model finds most likely.

    Args:
        image: uint8 (3, H, W), or (1, H, W) of grey.
        heat: the explanation; its note is written below.
        probabilities: (classes,).
        names: of the classes.
        target: the class that is explained, whose bar stands out; None: none does.
        caption: more paragraphs below the figure.
        smooth: as of `overlay`.
    """
    paragraphs = [*filter(None, [heat.note]), *caption]
    text = "\n".join(fill(paragraph, 128) for paragraph in paragraphs)
    width, picture = 8.4, 2.9  # inches
    height = picture * image.shape[1] / image.shape[2] + 0.55 + (0.15 * (1 + text.count("\n")) if text else 0)
    figure = Figure(figsize=(width, height), layout="compressed")
    photograph, explanation, answer = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    photograph.imshow(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
    photograph.set_title("photograph", fontsize=9)
    explanation.imshow(overlay(image, heat.relevance, heat.signed, smooth).numpy())
    explanation.set_title(_cut(heat.title, picture, 9), fontsize=9, parse_math=False)
    nothing = nothing_shown(heat.relevance)
    key = "red: for the class, blue: against it" if heat.signed else "the brighter, the more relevant"
    explanation.set_xlabel(nothing or key, fontsize=SIZE, color="#b2182b" if nothing else "0.35")
    for axes in (photograph, explanation):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    answer.set_box_aspect(image.shape[1] / image.shape[2] / 0.8)  # as high as the pictures
    _draw_answer(answer, probabilities.detach().cpu().float(), names, target)
    if text:
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="0.35", parse_math=False)
    return figure


def contact_sheet(rows: Sequence[Row], caption: str = "", smooth: bool = False) -> Figure:
    """Draws a row for each image and a column for each method, with the methods' titles above.

    Args:
        rows: one row or more, all with explanations by the same methods. A note, or in words that a map shows nothing,
            stands above its map. A title that is too long for one line takes two.
        caption: a paragraph below.
        smooth: as of `overlay`.
    """
    columns = 1 + len(rows[0].heats)
    width = CELL * columns
    above = [[fill(row.label, _letters(PICTURE, SIZE)), *(_remarks(heat) for heat in row.heats)] for row in rows]
    words = [height_of(max(text.count("\n") + 1 for text in texts), SIZE) for texts in above]
    below = fill(caption, _letters(width, SIZE))
    titles = [_titled(heat.title) for heat in rows[0].heats]
    head = height_of(max([title.count("\n") + 1 for title in titles], default=1), SIZE + 1) + 2 * GAP
    foot = height_of(below.count("\n") + 1, SIZE) + 2 * GAP if caption else 0
    sheet = Sheet(width, head + sum(words) + len(rows) * (PICTURE + 2 * GAP) + foot + GAP)
    for column, title in enumerate(["photograph", *titles]):
        sheet.text(CELL * (column + 0.5), GAP, title, SIZE + 1)
    top = head
    for row, texts, lines in zip(rows, above, words):
        top += lines + 2 * GAP
        maps = [_drawn(row.image, heat, smooth) for heat in row.heats]
        for column, (picture, text) in enumerate(zip([row.image, *maps], texts)):
            sheet.picture(picture, CELL * column + (CELL - PICTURE) / 2, top, PICTURE, text, SIZE)
        top += PICTURE
    if caption:
        sheet.text(width / 2, top + 2 * GAP, below, SIZE, colour="0.35")
    return sheet.figure


def _scaled(values: Tensor, signed: bool) -> Tensor:
    """Values (h, w) -> where they are in their colour map, in [0, 1]; 0.5 is zero of a map with signs."""
    if signed:
        return 0.5 + 0.5 * values / values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    return (values - values.min()) / (values.max() - values.min())


def _resized(values: Tensor, image: Tensor, smooth: bool) -> Tensor:
    """Resizes a map (h, w) to the height and width of an image."""
    how = {"mode": "bilinear", "antialias": True} if smooth else {"mode": "nearest-exact"}
    return F.interpolate(values[None, None], tuple(image.shape[1:]), **how)[0, 0].clamp(0, 1)


def _draw_answer(axes: Axes, probabilities: Tensor, names: Sequence[str], target: int | None) -> None:
    """Draws the most likely classes as bars, each below its name and probability."""
    values, classes = probabilities.topk(min(TOP, len(probabilities)))
    colours = ["#b2182b" if number == target else "0.6" for number in classes.tolist()]
    axes.barh(range(len(values)), values.tolist(), 0.28, color=colours)
    for place, (value, number) in enumerate(zip(values.tolist(), classes.tolist())):
        style = {"fontsize": SIZE, "va": "bottom", "parse_math": False}
        weight = "bold" if number == target else "normal"
        axes.text(0.015, place - 0.2, _cut(names[number], 1.7, SIZE, weight), ha="left", weight=weight, **style)
        axes.text(1, place - 0.2, f"{100 * value:.1f} %", ha="right", weight=weight, **style)
    axes.set(xlim=(0, 1), ylim=(TOP - 0.7, -0.7), xticks=[], yticks=[])
    axes.set_title(f"most likely of {counted(len(probabilities), 'class')}", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set(visible=True, color="0.7")


def _remarks(heat: Heat | Picture) -> str:
    """What stands above a map of a contact sheet."""
    nothing = nothing_shown(heat.relevance) if isinstance(heat, Heat) else ""
    return "\n".join(fill(text, _letters(PICTURE, SIZE)) for text in (heat.note, nothing) if text)


def _drawn(image: Tensor, heat: Heat | Picture, smooth: bool) -> Tensor:
    """What a contact sheet shows, uint8 (3, H, W)."""
    if isinstance(heat, Picture):
        return heat.pixels
    return overlay(image, heat.relevance, heat.signed, smooth).permute(2, 0, 1)


def _titled(title: str) -> str:
    """A column's title on one line, or on two where a colon is a place to break it."""
    whole = _cut(title, PICTURE, SIZE + 1)
    first, mark, second = title.rpartition(": ")
    if not whole.endswith("…") or not mark:
        return whole
    return f"{_cut(first + ':', PICTURE, SIZE + 1)}\n{_cut(second, PICTURE, SIZE + 1)}"


def _letters(width: float, size: float) -> int:
    """How many letters of so many points fit into so many inches."""
    return int(width / (LETTER * size))


def _cut(text: str, width: float, size: float, weight: str = "normal") -> str:
    """A text on one line that fits into so many inches; what had to be cut ends with an ellipsis."""
    font = ImageFont.truetype(findfont(FontProperties(weight=weight)), size)
    text = short = shown(text)
    while short and font.getlength(short) > 72 * width:
        text = text[:-1]
        short = text.rstrip() + "…"
    return short
