"""Writes a folder of explanations: figures of each image and method, sheets of all of them, and the maps as numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from engine.data.loading.loader import Normalise
from engine.explain.depth import animation, blocks_of, merging, regions, scale_of, strip, trace
from engine.explain.drawing import Heat, Picture, Row, contact_sheet, figure_of
from engine.explain.explaining import Explained, explained, split_options
from engine.explain.opening import Opened, Wanted, opened
from engine.figures.drawing import save_figure
from engine.figures.merge_tracing import Merged
from engine.files import replacing, writing
from engine.runs.trackers.board import EXPLAINED_ENDING, Board, picture_of, remove_ends, write_end
from engine.wording import counted
from models.explain import EXPLAINERS
from models.settings import UserError, nearest

MERGE = "merge"  # what each block merged: a picture of its own kind
PAGE = 20  # images on a sheet


@dataclass(frozen=True)
class _Column:
    """One run with one way of merging, and one method: a column of the sheets.

    Attributes:
        label: of the run and its merging; empty where there is one.
        method: a key of EXPLAINERS, or "merge".
        of_sheet: for each image, what the sheets show.
        found: the explanations; None for "merge".
    """

    label: str
    method: str
    of_sheet: Sequence[Heat | Picture]
    found: Explained | None = None


def report(wanted: Wanted, out: Path) -> Iterator[str]:
    """Explains images and writes the folder. Yields a line about each file or kind of file, when it is there.

    Raises:
        UserError: an unknown method, option, budget or class, a folder that is no run, a model that a method does not
            serve, or an image that cannot be read.
    """
    overrides, options = split_options(wanted.overrides)
    methods = _methods(wanted.methods)
    names, models = opened(wanted, overrides)
    seen = models[0].images.expand(-1, 3, -1, -1)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    album = _Album(out, wanted.tensorboard)
    columns: list[_Column] = []
    for method in methods:  # so that a sheet has the same method with every model side by side
        for model in models:
            if method == MERGE:
                columns.append(_merges(model, names, album, lenient=bool(wanted.budgets)))
            else:
                columns.append(_with_bar(model, method, options))
    if album.merges:
        yield f"{out}/*_merge.png, *_merge.gif: what each block merged, {counted(len(names), 'image')}"
    maps = [column for column in columns if column.found is not None]
    yield from _figures(maps, seen, names, album, wanted.smooth)
    if maps or len(columns) > 1:
        yield from _sheets(columns, seen, names, album, wanted.smooth)
    if maps:
        yield _arrays(maps, names, out / "explanations.npz")
    yield from album.close()


def _methods(names: Sequence[str]) -> list[str]:
    known = [*EXPLAINERS, MERGE]
    if "all" in names:
        return list(EXPLAINERS)
    for name in names:
        if name not in known:
            raise UserError(f"--method {name}: unknown; {nearest(name, [*known, 'all'])}")
    return list(dict.fromkeys(names))


class _Album:
    """Pictures in a folder and, if asked for, in an event file for TensorBoard, which is written when all are there."""

    def __init__(self, out: Path, tensorboard: bool) -> None:
        self.out = out
        self.merges = 0  # strips of what blocks merged
        self._events = io.BytesIO()
        self._board = Board(self._events) if tensorboard else None

    def figure(self, figure: Figure, group: str, *parts: str) -> None:
        """Saves a figure as GROUP_PARTS.png, or GROUP.png without parts."""
        path = self.out / f"{_file_name(group, *parts)}.png"
        save_figure(figure, path)
        self.file(path, group, *parts)

    def file(self, path: Path, group: str, *parts: str) -> None:
        """Adds a file of the folder to TensorBoard's pictures."""
        if self._board is not None:
            self._board.add(0, picture_of("/".join(filter(None, [group, " ".join(filter(None, parts))])), path))

    def close(self) -> Iterator[str]:
        if self._board is not None:
            self._board.flush()
            remove_ends(self.out, EXPLAINED_ENDING)
            write_end(self.out, self._events.getvalue(), EXPLAINED_ENDING)
            yield f"{self.out}: the same pictures for tensorboard --logdir {self.out}"


def _file_name(*parts: str) -> str:
    """Parts of a file's name: images in folders, and names of runs, may have any characters."""
    return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)


def _with_bar(model: Opened, method: str, options: Mapping[str, Mapping[str, Any]]) -> _Column:
    """Explains images behind a progress bar, which a terminal shows."""
    line = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=len(model.images), desc=method, disable=None, leave=False, bar_format=line) as bar:
        found = explained(
            model.run, model.images, method, model.target, options.get(method), lambda done: bar.update(done - bar.n)
        )
    return _Column(model.label, method, [_on_sheet(found, i, model.label) for i in range(len(model.images))], found)


def _on_sheet(found: Explained, position: int, label: str) -> Heat:
    """An explanation, with the class that is explained and its probability above it."""
    target = int(found.target[position])
    heat = found.heat(position, ": ".join(filter(None, [label, found.method])))
    answer = f"{found.classes[target]} {100 * float(found.probabilities[position, target]):.0f} %"
    return heat._replace(note=", ".join(filter(None, [answer, heat.note])))


def _without_ending(name: str) -> str:
    """An image's path as its pictures are called: images of one name in two folders stay apart."""
    return Path(name).with_suffix("").as_posix()


def _merges(model: Opened, names: Sequence[str], album: _Album, lenient: bool) -> _Column:
    """Writes what each block merged, as a strip and as an animation; lenient: unless nothing is merged."""
    device, shown = next(model.run.model.parameters()).device, []
    title = ": ".join(filter(None, [model.label, MERGE]))
    for image, name in zip(model.images.expand(-1, 3, -1, -1), names, strict=True):
        normalised = Normalise(model.run.mean, model.run.std)(image[None, : model.images.shape[1]])[0].to(device)
        depth = (blocks_of if lenient else trace)(model.run.model, normalised)
        shown.append(Picture(title, _left(image, depth), f"{depth[-1].tokens} of {depth[0].index.numel()} tokens"))
        if any(merging(depth)):
            album.merges += 1
            album.figure(strip(image, depth), _without_ending(name), model.label, MERGE)
            moving = album.out / f"{_file_name(_without_ending(name), model.label, MERGE)}.gif"
            animation(image, depth, moving)
            album.file(moving, _without_ending(name), model.label, MERGE, "in motion")
    return _Column(model.label, MERGE, shown)


def _left(image: Tensor, depth: Sequence[Merged]) -> Tensor:
    """The tokens that are left after the last block, drawn in their colours; the photograph where nothing is merged."""
    if not any(merging(depth)):
        return image
    drawn = regions(image, depth[-1], scale_of(image))
    return torch.from_numpy(drawn.copy()).permute(2, 0, 1)


def _figures(
    columns: Sequence[_Column], images: Tensor, names: Sequence[str], album: _Album, smooth: bool
) -> Iterator[str]:
    for column in columns:
        found = column.found
        assert found is not None
        for position, name in enumerate(names):
            figure = figure_of(
                images[position],
                found.heat(position),
                found.probabilities[position],
                found.classes,
                int(found.target[position]),
                smooth=smooth,
            )
            album.figure(figure, _without_ending(name), column.label, found.method)
        yield f"{album.out}/*_{_file_name(column.label, found.method)}.png: {counted(len(names), 'figure')}"


def _sheets(
    columns: Sequence[_Column], images: Tensor, names: Sequence[str], album: _Album, smooth: bool
) -> Iterator[str]:
    """Writes sheets of PAGE images each."""
    pages = range(0, len(names), PAGE)
    for number, start in enumerate(pages, start=1):
        rows = [
            Row(names[i], images[i], [column.of_sheet[i] for column in columns])
            for i in range(start, min(start + PAGE, len(names)))
        ]
        name = "sheet" if len(pages) == 1 else f"sheet{number}"
        album.figure(contact_sheet(rows, smooth=smooth), name)
        yield f"{album.out}/{name}.png: {counted(len(rows), 'image')}, {counted(len(columns), 'explanation')} of each"


def _arrays(columns: Sequence[_Column], names: Sequence[str], path: Path) -> str:
    """Writes the maps, targets and probabilities of every column."""
    arrays: dict[str, Any] = {"images": np.array(list(names))}
    for column in columns:
        assert column.found is not None
        key, found = _file_name(column.label, column.method), column.found
        arrays[key] = found.relevance.numpy()
        arrays[f"{key}_target"] = np.array([found.classes[i] for i in found.target.tolist()])
        arrays[f"{key}_probabilities"] = found.probabilities.float().numpy()
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)
    return f"{path}: the maps as numbers"
