"""Draws what merging methods do to photographs, with a run's model or by colour alone (tools/picture.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from engine.data import FileSettings
from engine.data.loading.inputs import read_images, reading_settings
from engine.figures.merge_drawing import EXPLAINED, Row, draw_rows
from engine.figures.merge_tracing import LEARNED, STEPS, THUMBNAIL, UNTRAINED, Merged, merged_by_colour, merged_by_run
from engine.figures.photographs import credit_line, path_of
from engine.runs.restore import TrainedModel, load_model
from models.interface import model_name
from models.merging import MERGERS
from models.settings import UserError, nearest

SIZE, PATCH, KEEP = 224, 16, 0.25  # without a run: pixels per side, pixels per patch, share of the patches that remain
MOST = 4096  # pixels per side, and patches


def picture_by_colour(
    names: Sequence[str], methods: Sequence[str] = (), size: int = SIZE, patch: int = PATCH, keep: float = KEEP
) -> Figure:
    """Draws what each method merges when patches are compared by their colours, without a model.

    Args:
        names: image files, or names of engine.figures.photographs.PHOTOGRAPHS.
        methods: names of MERGERS; if empty, all that need no training.
        size: height and width to which the square in the middle of each photograph is resized, pixels.
        patch: side of a patch, pixels.
        keep: share of the patches that should remain.

    Raises:
        UserError: unknown or trained methods, values out of range, or photographs that cannot be read.
    """
    _check_methods(methods)
    if trained := [name for name in methods if name in LEARNED]:
        raise UserError(f"--methods {trained[0]}: has to be trained; give the --run that trained it")
    _check_layout(size, patch, keep)
    methods = list(methods) or UNTRAINED
    rows = []
    for name, image in zip(names, read_photographs(names, FileSettings(size=size))):
        rows.append(Row(Path(name).stem, image, [merged_by_colour(image, patch, method, keep) for method in methods]))
    return draw_rows(rows, _caption(_how_by_colour(patch, methods), names))


def picture_of_run(
    folder: Path, names: Sequence[str], methods: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Figure:
    """Draws what a run's model merges, and the pixels that it sees: those of tools/predict.py, grey for a grey model.

    The run's data are not needed.

    Args:
        folder: a run folder.
        names: image files, or names of engine.figures.photographs.PHOTOGRAPHS.
        methods: names of MERGERS, a column for each, all with the same weights; if empty, the run's own.
        overrides: changes to the run's settings, such as "merge.r=4".

    Raises:
        UserError: the folder is not a run, its model merges nothing or does not take photographs, or a photograph
            cannot be read.
    """
    _check_methods(methods)
    columns: list[list[Merged]] = [[] for _ in names]
    for change in [[f"merge.method={name}"] for name in methods] or [[]]:
        run = load_model(folder, [*overrides, *change])
        reading = reading_settings(run.settings.data, run.settings.model)
        images = read_photographs(names, reading, run.settings.model.in_chans)
        for column, image in zip(columns, images):
            column.append(merged_by_run(run, image))
    seen = images.expand(-1, 3, -1, -1)  # grey as RGB, for drawing; every method sees the same pixels
    rows = [Row(Path(name).stem, image, column) for name, image, column in zip(names, seen, columns)]
    return draw_rows(rows, _caption(_how_by_run(run, methods), names))


def read_photographs(names: Sequence[str], reading: FileSettings, channels: int = 3) -> Tensor:
    """Reads photographs as model input, before normalisation: uint8 (N, channels, size, size).

    Raises:
        UserError: a file is missing or cannot be read; the message names the first such file.
    """
    images, unreadable = read_images([path_of(name) for name in names], reading, channels)
    for position, why in unreadable.items():
        raise UserError(f"{names[position]}: cannot be read ({why}); give a JPEG or PNG file")
    return images


def _check_methods(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in MERGERS:
            raise UserError(f"--methods {name}: unknown; {nearest(name, list(MERGERS))}")


def _check_layout(size: int, patch: int, keep: float) -> None:
    for key, value in (("size", size), ("patch", patch)):
        if not 1 <= value <= MOST:
            raise UserError(f"--{key} {value}: must be from 1 to {MOST}")
    if size % patch:
        near = " or ".join(str(n) for n in (size - size % patch, size - size % patch + patch) if n)
        raise UserError(f"--size {size}: not divisible by --patch {patch}; use {near}")
    if (size // patch) ** 2 > MOST:
        raise UserError(f"--patch {patch}: makes {(size // patch) ** 2} patches, more than {MOST}; use a larger one")
    if not 0 < keep <= 1:
        raise UserError(f"--keep {keep:g}: must be greater than 0 and at most 1")


def _caption(how: str, names: Sequence[str]) -> list[str]:
    """Returns the paragraphs below a picture."""
    return [f"{EXPLAINED} {how}", *filter(None, [credit_line(names)])]


def _how_by_colour(patch: int, methods: Sequence[str]) -> str:
    side = min(THUMBNAIL, patch)
    text = (
        f"No model, nothing trained: patches of {patch} × {patch} pixels are compared by the colours of their {side} × "
        f"{side} thumbnails, as the mean of cos π(v - w) over their values in [0, 1], and merged in {STEPS} steps, "
        "of equal size where the method can."
    )
    attending = [name for name in methods if MERGERS[name].attends is not None]
    if attending:
        names = " and ".join(filter(None, (", ".join(attending[:-1]), attending[-1])))
        text += (
            f" The attention used by {names} is computed from the same features, with the mean of "
            "all patches as class token: it goes to common colours, not to what a trained model finds important."
        )
    return text


def _how_by_run(run: TrainedModel, methods: Sequence[str]) -> str:
    which = "merging as in training" if run.as_trained else "merging otherwise than in training"
    if len(methods) > 1:
        which = "each method with the same weights"
    name = model_name(run.settings.model)
    return f"Model: run {run.settings.name}, {name} on {run.settings.data.name}, {which}."
