"""Writes a folder of explanations: figures of each image and method, sheets of all of them, and the maps as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from engine.data.loading.loader import Normalise
from engine.explain.depth import animation, strip, trace
from engine.explain.drawing import Row, contact_sheet, figure_of
from engine.explain.explaining import Explained, class_number, explained, mistaken, read, split_options
from engine.figures.drawing import save_figure
from engine.files import replacing, writing
from engine.runs.restore import TrainedModel, load_model, load_run
from engine.submit.images import images_of
from engine.wording import counted
from models.explain import EXPLAINERS
from models.settings import UserError, nearest

MERGE = "merge"  # what each block merged: a picture of its own kind
PAGE = 20  # images on a sheet


@dataclass(frozen=True)
class Wanted:
    """What tools/explain.py was asked for.

    Attributes:
        runs: run folders.
        images: image files and folders of images; none: the test images that the first run gets wrong.
        methods: keys of EXPLAINERS, "merge", or "all".
        target: a class's name or number; None: the class that each run predicts.
        overrides: of the runs, and options of methods.
        smooth: draw maps interpolated.
        wrong: without images: how many mistakes, the most confident first.
    """

    runs: Sequence[Path]
    images: Sequence[Path]
    methods: Sequence[str]
    target: str | None = None
    overrides: Sequence[str] = ()
    smooth: bool = False
    wrong: int = 0


@dataclass(frozen=True)
class _Column:
    """One run and method: a column of the sheets."""

    run: str  # its name; empty where there is a single run
    found: Explained

    @property
    def title(self) -> str:
        return f"{self.run}: {self.found.method}" if self.run else self.found.method


def report(wanted: Wanted, out: Path) -> Iterator[str]:
    """Explains images and writes the folder. Yields a line about each file or kind of file, when it is there.

    Raises:
        UserError: an unknown method, option or class, a folder that is no run, a model that a method does not serve,
            or an image that cannot be read.
    """
    overrides, options = split_options(wanted.overrides)
    methods = _methods(wanted.methods)
    if wanted.wrong:
        runs: Sequence[TrainedModel] = [load_run(folder, overrides) for folder in wanted.runs]
        names, pixels = mistaken(runs, wanted.wrong)
    else:
        files = images_of(wanted.images)
        runs = [load_model(folder, overrides) for folder in wanted.runs]
        names, pixels = list(files), [read(run, files) for run in runs]
    for run in runs:
        run.model.eval()
    targets = [None if wanted.target is None else class_number(run.classes, wanted.target) for run in runs]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    columns: list[_Column] = []
    for name, run, images, target in zip(_names(wanted.runs, runs), runs, pixels, targets, strict=True):
        if MERGE in methods:
            yield from _merges(run, images, names, out, name)
        for method in methods:
            if method != MERGE:
                columns.append(_Column(name, _with_bar(run, images, method, target, options)))
    if columns:
        seen = pixels[0].expand(-1, 3, -1, -1)
        yield from _figures(columns, seen, names, out, wanted.smooth)
        yield from _sheets(columns, seen, names, out, wanted.smooth)
        yield _arrays(columns, names, out / "explanations.npz")


def _names(folders: Sequence[Path], runs: Sequence[TrainedModel]) -> list[str]:
    """What tells runs apart: nothing for one run; their names, or their folders where two names are the same."""
    names = [run.settings.name for run in runs]
    if len(runs) == 1:
        return [""]
    return names if len(set(names)) == len(names) else [folder.as_posix() for folder in folders]


def _methods(names: Sequence[str]) -> list[str]:
    known = [*EXPLAINERS, MERGE]
    if "all" in names:
        return list(EXPLAINERS)
    for name in names:
        if name not in known:
            raise UserError(f"--method {name}: unknown; {nearest(name, [*known, 'all'])}")
    return list(dict.fromkeys(names))


def _with_bar(
    run: TrainedModel, images: Tensor, method: str, target: int | None, options: Mapping[str, Mapping[str, Any]]
) -> Explained:
    """Explains images behind a progress bar, which a terminal shows."""
    line = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=len(images), desc=method, disable=None, leave=False, bar_format=line) as bar:
        return explained(run, images, method, target, options.get(method), lambda done: bar.update(done - bar.n))


def _file_name(*parts: str) -> str:
    """Parts of a file's name: images in folders, and names of runs, may have any characters."""
    return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in parts if part)


def _merges(run: TrainedModel, images: Tensor, names: Sequence[str], out: Path, run_name: str) -> Iterator[str]:
    """Writes what each block merged, as a strip and as an animation."""
    device = next(run.model.parameters()).device
    for image, name in zip(images, names, strict=True):
        depth = trace(run.model, Normalise(run.mean, run.std)(image[None])[0].to(device))
        path = out / _file_name(Path(name).stem, run_name, MERGE)
        save_figure(strip(image.expand(3, -1, -1), depth), path.with_suffix(".png"))
        animation(image.expand(3, -1, -1), depth, path.with_suffix(".gif"))
    yield f"{out}/*_merge.png, *_merge.gif: what each block merged, {counted(len(names), 'image')}"


def _figures(
    columns: Sequence[_Column], images: Tensor, names: Sequence[str], out: Path, smooth: bool
) -> Iterator[str]:
    for column in columns:
        found = column.found
        for position, name in enumerate(names):
            figure = figure_of(
                images[position],
                found.heat(position),
                found.probabilities[position],
                found.classes,
                int(found.target[position]),
                smooth=smooth,
            )
            save_figure(figure, out / f"{_file_name(Path(name).stem, column.run, found.method)}.png")
        yield f"{out}/*_{_file_name(column.run, found.method)}.png: {counted(len(names), 'figure')}"


def _sheets(columns: Sequence[_Column], images: Tensor, names: Sequence[str], out: Path, smooth: bool) -> Iterator[str]:
    """Writes sheets of PAGE images each."""
    pages = range(0, len(names), PAGE)
    for number, start in enumerate(pages, start=1):
        rows = [
            Row(names[i], images[i], [column.found.heat(i, column.title) for column in columns])
            for i in range(start, min(start + PAGE, len(names)))
        ]
        path = out / ("sheet.png" if len(pages) == 1 else f"sheet{number}.png")
        save_figure(contact_sheet(rows, smooth=smooth), path)
        yield f"{path}: {counted(len(rows), 'image')}, {counted(len(columns), 'explanation')} of each"


def _arrays(columns: Sequence[_Column], names: Sequence[str], path: Path) -> str:
    """Writes the maps, targets and probabilities of every column."""
    arrays: dict[str, Any] = {"images": np.array(list(names))}
    for column in columns:
        key, found = _file_name(column.run, column.found.method), column.found
        arrays[key] = found.relevance.numpy()
        arrays[f"{key}_target"] = np.array([found.classes[i] for i in found.target.tolist()])
        arrays[f"{key}_probabilities"] = found.probabilities.float().numpy()
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)
    return f"{path}: the maps as numbers"
