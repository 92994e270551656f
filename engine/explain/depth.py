"""Merging as a picture of depth: what each block of a model leaves of one image, in one figure or as an animation.

depth = trace(model, normalised)  # a step for each block
save_figure(strip(image, depth), Path("depth.png"))
animation(image, depth, Path("depth.gif"))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from engine.figures.merge_drawing import EXPLAINED, borders, draw_steps, painted
from engine.figures.merge_tracing import Merged
from engine.files import replacing
from engine.wording import counted
from models.explain.recording import recording
from models.modes import in_evaluation_mode
from models.settings import UserError

SIDE = 448  # pixels: about as large is an animation's longer side
FRAME, LAST = 600, 2400  # milliseconds
GREYS = 8  # shades of an animation's text: few colours keep its file small
LINES = ((70, 70, 70), (255, 255, 255))  # a border is dark on one side and light on the other, to be seen on any colour


def trace(model: nn.Module, image: Tensor) -> list[Merged]:
    """Traces how a model merges one image, block by block.

    Args:
        model: ours or another library's, wrapped or not. It is left as it was.
        image: (3, H, W), normalised as the model expects.

    Returns:
        For each block, in their order, `Merged`: its title, such as "block 4", the token of each input patch, and how
        many tokens leave the block, without prefix tokens such as the class token.

    Raises:
        UserError: the model merges nothing, has no attention, or its rows and columns of patches are not known.
    """
    steps = blocks_of(model, image)
    if not any(merging(steps)):
        raise UserError("the model merges no tokens in any block; turn merging on with merge.method=tome merge.r=8")
    return steps


def blocks_of(model: nn.Module, image: Tensor) -> list[Merged]:
    """As `trace`, also of a model that merges nothing."""
    device = next(model.parameters()).device
    with in_evaluation_mode(model), torch.no_grad(), recording(model) as blocks:
        model(image[None].to(device))
    steps = []
    for number, block in enumerate(blocks, 1):
        index = block.on_grid(block.after.index[:, block.prefix :] - block.prefix)[0].cpu()
        steps.append(Merged(f"block {number}", index, block.after.size.shape[1] - block.prefix))
    return steps


def merging(depth: Sequence[Merged]) -> list[bool]:
    """Returns for each block whether it merged anything: whether fewer tokens left it than entered."""
    counts = [depth[0].index.numel(), *(step.tokens for step in depth)]
    return [after < before for before, after in pairwise(counts)]


def strip(image: Tensor, depth: Sequence[Merged], caption: Sequence[str] = ()) -> Figure:
    """Draws the photograph and then each block that merged something; the caption names the blocks that did not.

    Args:
        image: the traced image as a photograph, uint8 (3 or 1, H, W); the rows and columns of patches divide its sides.
        depth: of `trace`.
        caption: more paragraphs below the figure, such as the photograph's credit.
    """
    changes = merging(depth)
    idle = [number for number, merges in enumerate(changes, 1) if not merges]
    text = f"{EXPLAINED} {_idle(idle)}".strip()
    return draw_steps(
        image.expand(3, -1, -1), [step for step, merges in zip(depth, changes) if merges], [text, *caption]
    )


def animation(image: Tensor, depth: Sequence[Merged], path: Path, scale: int | None = None) -> None:
    """Writes an animated GIF, completely or not at all: the photograph, then a frame for each block, again and again.

    Args:
        image: the traced image as a photograph, uint8 (3 or 1, H, W); the rows and columns of patches divide its sides.
        depth: of `trace`.
        path: the file.
        scale: pixels of the animation for each pixel of the image; None: as many as make its longer side SIDE or less,
            at least one.

    Raises:
        UserError: the file cannot be written.
    """
    image = image.expand(3, -1, -1)
    scale = scale or scale_of(image)
    patches = depth[0].index.numel()
    frames = [_frame(enlarged(image.permute(1, 2, 0).numpy(), scale), f"photograph: {counted(patches, 'patch')}")]
    for step, merges in zip(depth, merging(depth)):
        words = f"{step.title}: {counted(step.tokens, 'token')}" + ("" if merges else ", merges nothing")
        frames.append(_frame(regions(image, step, scale), words))
    first, *others = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = [FRAME] * len(others) + [LAST]
    with replacing(path) as file:
        first.save(file, format="GIF", save_all=True, append_images=others, duration=times, loop=0)


def _idle(numbers: Sequence[int]) -> str:
    """Returns a sentence on the blocks that merge nothing, such as "Blocks 1 to 3, 7 merge nothing."; "" for none."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in ranges]
    verb = "Block {} merges nothing." if len(numbers) == 1 else "Blocks {} merge nothing."
    return verb.format(", ".join(texts)) if texts else ""


def scale_of(image: Tensor) -> int:
    """Pixels of a picture for each pixel of an image (C, H, W), so that its longer side has about `SIDE`."""
    return max(1, SIDE // max(image.shape[1:]))


def enlarged(pixels: np.ndarray, rows: int, columns: int | None = None) -> np.ndarray:
    """Repeats each pixel (h, w, 3) `rows` times downwards and `columns` times to the right, by default as often."""
    return pixels.repeat(rows, 0).repeat(columns or rows, 1)


def regions(image: Tensor, step: Merged, scale: int) -> np.ndarray:
    """Draws tokens in their mean colours with lines between them, uint8 (H * scale, W * scale, 3).

    Args:
        image: uint8 (3, H, W); the rows and columns of patches divide its sides.
        step: the token of each patch.
        scale: pixels of the picture for each pixel of the image.
    """
    rows, columns = step.index.shape
    height, width = (scale * image.shape[1] // rows, scale * image.shape[2] // columns)  # of a patch
    colours = (255 * painted(image, step.index)).round().byte().numpy()
    picture = Image.fromarray(enlarged(colours, height, width))
    draw = ImageDraw.Draw(picture)
    for (left, top), (right, bottom) in borders(step.index):
        for away, colour in zip((1, 0), LINES):
            aside, up = (away, 0) if left == right else (0, away)
            ends = (left * width - aside, top * height - up, right * width - aside, bottom * height - up)
            draw.line(ends, colour)
    return np.asarray(picture)


def _frame(pixels: np.ndarray, words: str) -> Image.Image:
    """A frame of an animation: a picture with a text in a white band above it."""
    height, width = pixels.shape[:2]
    font = ImageFont.truetype(findfont("DejaVu Sans"), max(8, min(18, width // 25)))
    band = Image.new("L", (width, round(1.7 * font.size)), 255)
    ImageDraw.Draw(band).text((width // 2, band.height // 2), words, 0, font, anchor="mm")
    band = band.point([round(round(v / 255 * (GREYS - 1)) * 255 / (GREYS - 1)) for v in range(256)])
    frame = Image.new("RGB", (width, height + band.height))
    frame.paste(band.convert("RGB"), (0, 0))
    frame.paste(Image.fromarray(pixels), (0, band.height))
    return frame
