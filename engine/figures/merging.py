"""Pictures of what was merged: photographs with every patch in the mean colour of the token that it ended in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from importlib.resources import files
from math import ceil, pi, prod
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from engine.data.loader import Normalise
from engine.measure.evaluate import eval_mode
from engine.runs.restore import FinishedRun
from models.interface import merging_method, model_name, trace_tokens
from models.merging import MERGERS, effective_schedule, initial_tokens, merge, size_bias
from models.merging.contract import Grid
from models.merging.layer import attention_received
from models.settings import UserError, nearest

STEPS = 6  # in which patches are merged where no model says how
THUMBNAIL = 4  # values on a side that patches are compared by where no model does it
WIDTH = 12.3  # of a figure, inches, unless its columns are few or many
MODES = {1: "L", 3: "RGB"}  # Pillow's name of an image with so many channels


class Photograph(NamedTuple):
    """A photograph that an installed package brings along."""

    package: str
    file: str
    credit: str  # its licences ask for it wherever the photograph is shown


# scikit-learn's README names danielbuechele for both of its photographs, but its links for the flower are vultilion's.
PHOTOGRAPHS = {
    "china": Photograph("sklearn.datasets", "images/china.jpg", "danielbuechele (Flickr), CC BY 2.0"),
    "flower": Photograph("sklearn.datasets", "images/flower.jpg", "vultilion (Flickr), CC BY 2.0"),
    "grace_hopper": Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "U.S. Navy, public domain"),
}


class Merged(NamedTuple):
    """What became of one image's patches."""

    title: str
    index: Tensor  # (rows, columns) int64: patches that share a number are one token
    tokens: int  # how many are left, the class token not counted


class Row(NamedTuple):
    """A photograph, and what was merged on it."""

    label: str
    image: Tensor  # (3, H, W) uint8
    merged: list[Merged]


def read_image(name: str) -> Image.Image:
    """The right way up and in RGB: a file, or one of PHOTOGRAPHS by its name. What is transparent gets white.

    Raises:
        UserError: no such file, or none that Pillow reads.
    """
    known = PHOTOGRAPHS.get(name)
    path = Path(str(files(known.package) / known.file)) if known else Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such image file, nor a photograph at hand; {nearest(name, list(PHOTOGRAPHS))}")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        raise UserError(f"{name}: not an image, a damaged one, or far too large; give a JPEG or PNG file") from None


def square(image: Image.Image, size: int, channels: int = 3) -> Tensor:
    """The image's centre, resized to a square: uint8 (channels, size, size), grey for one channel."""
    fitted = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC).convert(MODES[channels])
    return torch.from_numpy(np.array(fitted)).view(size, size, channels).permute(2, 0, 1)


def merged_by_colour(image: Tensor, patch: int, method: str, keep: float) -> Merged:
    """Merges an image's patches by their colours, with nothing trained, in STEPS steps that ask for equal numbers.

    A token is its patches' mean pixels. Tokens are compared by their thumbnails (`features`). Methods that ask for
    attention get that of one head with q = k = the same features, with the size bias; its class token is the mean of
    all patches.

    Args:
        image: uint8 (3, H, W), sides divisible by `patch`.
        patch: pixels on a side of a patch.
        method: a name of MERGERS; not one that compares by what it has learned.
        keep: share of the patches that should be left, rounded up. A method that cannot merge as many leaves more.
    """
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    patches, merger = prod(grid), MERGERS[method]
    x = rearrange(image.float() / 255, "c (h p) (w q) -> 1 (h w) (c p q)", p=patch, q=patch)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    tokens = initial_tokens(x, grid)
    gone = patches - ceil(round(keep * patches, 6))
    plan = [gone // STEPS + (step < gone % STEPS) for step in range(STEPS)]
    for step, r in enumerate(effective_schedule(plan, patches, merger, grid)):
        metric, attention = features(x, patch), None
        if merger.attention is not None:
            attention = attention_received(metric[:, None], metric[:, None], size_bias(tokens), merger.attention)
        x, tokens = merge(x, tokens, metric, r, merger, 1, attention, step / STEPS)
    return Merged(method, tokens.index[0, 1:].view(grid), tokens.size.shape[1] - 1)


def features(x: Tensor, patch: int) -> Tensor:
    """What patches of pixels in [0, 1], (B, T, 3 patch^2), are compared by: (B, T, D) float32, all of one length.

    Every value v of the patch's thumbnail, 4 x 4 colours, becomes cos(pi v) and sin(pi v). Then the cosine of two
    patches is the mean of cos(pi (v - w)) over their values v and w: 1 for equal thumbnails, falling as they differ,
    -1 for black and white.
    """
    pixels = rearrange(x, "b t (c p q) -> (b t) c p q", p=patch, q=patch)
    side = min(THUMBNAIL, patch)
    values = pi * F.adaptive_avg_pool2d(pixels, side).flatten(1).view(*x.shape[:2], -1)
    return torch.cat([values.cos(), values.sin()], dim=-1)


def merged_by_run(run: FinishedRun, image: Tensor) -> Merged:
    """What a run's model merges on an image, uint8 (C, H, W) as its input is, computed in fp32.

    Raises:
        UserError: the model merges no tokens.
    """
    settings, device = run.settings.model, next(run.model.parameters()).device
    normalised = Normalise(run.data.mean, run.data.std)(image[None]).to(device)
    with eval_mode(run.model):
        traced = trace_tokens(run.model, normalised)
    if traced is None:
        fix = "add merge.method=tome merge.r=8" if hasattr(settings, "merge") else "give the run of a transformer"
        raise UserError(f"model.name = {model_name(settings)!r}: run {run.settings.name} merges no tokens; {fix}")
    tokens, grid = traced
    prefix = tokens.index.shape[1] - prod(grid)
    index = tokens.index[0, prefix:].view(grid).cpu()
    return Merged(merging_method(settings), index, tokens.size.shape[1] - prefix)


def caption_by_colour(patch: int, methods: Sequence[str]) -> str:
    """How `merged_by_colour` merges, to stand below its picture."""
    side = min(THUMBNAIL, patch)
    text = (
        f"No model, nothing trained: patches of {patch} × {patch} pixels are compared by the colours of their {side} × "
        f"{side} thumbnails, as the mean of cos π(v - w) over their values in [0, 1], and merged in {STEPS} steps, "
        "equal ones where the method can."
    )
    attending = [name for name in methods if MERGERS[name].attention is not None]
    if attending:
        text += (
            f" The attention that {' and '.join(attending)} go by comes from the same features, with the mean of all "
            "patches for a class token: what is common gets it, not what a trained model finds important."
        )
    return text


def caption_of_run(run: FinishedRun, methods: Sequence[str]) -> str:
    """Which model merged, to stand below its picture."""
    which = "merging as in training" if run.as_trained else "merging otherwise than in training"
    if len(methods) > 1:
        which = "each method with the same weights"
    name = model_name(run.settings.model)
    return f"Model: run {run.settings.name}, {name} on {run.settings.data.name}, {which}."


def credit_line(names: Sequence[str]) -> str:
    """Whose photographs the named ones of PHOTOGRAPHS are, to stand below them; "" for a user's own files."""
    shown = [f"{name} by {PHOTOGRAPHS[name].credit}" for name in dict.fromkeys(names) if name in PHOTOGRAPHS]
    return f"Photographs, cropped: {'; '.join(shown)}." if shown else ""


def painted(image: Tensor, index: Tensor) -> Tensor:
    """Every patch in the mean colour of its token's patches.

    Args:
        image: uint8 (3, H, W).
        index: which patches are one token, (rows, columns) int64.

    Returns:
        Red, green and blue in [0, 1], (rows, columns, 3).
    """
    rows, columns = index.shape
    colour = reduce(image.float() / 255, "c (h p) (w q) -> (h w) c", "mean", h=rows, w=columns)
    token = index.flatten()
    count = token.bincount().clamp(min=1)  # a token may stand for no patch
    total = colour.new_zeros(len(count), 3).index_add(0, token, colour)
    return (total / count.unsqueeze(1))[index]


def borders(index: Tensor) -> list[tuple[Grid, Grid]]:
    """Lines (x, y) to (x, y), in patches, between neighbours of different tokens; index (rows, columns)."""
    right = (index[:, :-1] != index[:, 1:]).nonzero().tolist()
    below = (index[:-1] != index[1:]).nonzero().tolist()
    upright = [((column + 1, row), (column + 1, row + 1)) for row, column in right]
    return upright + [((column, row + 1), (column + 1, row + 1)) for row, column in below]


def merging(rows: Sequence[Row], caption: Sequence[str]) -> Figure:
    """One row per photograph, itself first; one column for each way of merging, which all rows have alike.

    Args:
        rows: photographs of one size.
        caption: paragraphs below.
    """
    columns = 1 + len(rows[0].merged)
    side = min(2.2, max(1.2, WIDTH / columns))  # inches
    width = max(columns * side, 5.5)
    text = "\n".join(fill(paragraph, int(17 * width)) for paragraph in caption)
    picture = (width - 0.25) / columns  # beside the labels
    height = len(rows) * (picture + 0.04) + 0.5 + 0.14 * (1 + text.count("\n"))
    figure = Figure(figsize=(width, height), layout="compressed")
    margin = 0.06 / height  # above the titles
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0, rect=(0, 0, 1, 1 - margin))
    for row, (first, *others) in zip(rows, figure.subplots(len(rows), columns, squeeze=False)):
        first.imshow(row.image.permute(1, 2, 0).numpy())
        first.set_ylabel(row.label[: int(16 * picture)], fontsize=8)  # what there is room for
        for axes, merged in zip(others, row.merged):
            draw(axes, row.image, merged)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    photograph, *others = figure.axes[:columns]
    photograph.set_title(f"photograph\n{rows[0].merged[0].index.numel()} patches", fontsize=8)
    for axes, merged in zip(others, rows[0].merged):
        axes.set_title(f"{merged.title}\n{merged.tokens} tokens", fontsize=8)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def draw(axes: Axes, image: Tensor, merged: Merged) -> None:
    """One way of merging: patches in their tokens' colours, lines between tokens."""
    rows, columns = merged.index.shape
    axes.imshow(painted(image, merged.index).numpy(), extent=(0, columns, rows, 0), interpolation="nearest")
    for colour, lw in (("0.3", 0.8), ("white", 0.4)):  # seen on light and on dark
        axes.add_collection(LineCollection(borders(merged.index), colors=colour, linewidths=lw))
