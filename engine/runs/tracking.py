"""Records the numbers and pictures of a run during training, in metrics.jsonl and in TensorBoard's event files."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import summary

from engine.files import finite, write_text_atomic, writing
from engine.runs.board import Board, next_events, remove_ends, write_end
from engine.runs.folder import RunFolder
from engine.runs.records.metrics import step_of
from models.settings import UserError


class Silent:
    """What a process is given that trains with others and writes nothing: it takes what `Tracker` takes in training."""

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Writes nothing."""

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Draws nothing."""

    def flush(self) -> int:
        """Returns 0 lines."""
        return 0


class Tracker:
    """Writes the numbers and pictures of one run.

    Each call of `scalars` writes one line of metrics.jsonl, `{"step": 40, "train/loss": 1.5, ...}`, with null for nan
    and inf. TensorBoard gets the same numbers under the tags of `board_tag`, and also pictures, texts and settings.
    Whatever has a single value at the end of a run is a text or an entry of the HPARAMS page: as a scalar it would be a
    chart with one dot.

    A resumed run continues the files where its checkpoint left them: lines that the interrupted run wrote after the
    checkpoint are deleted, and TensorBoard is told to discard its events after that step. For this to be exact, log
    first, then call `flush`, then save the checkpoint with the step and the number that `flush` returned.

    Args:
        run_dir: the run folder, which must exist.
        resume_step: the step of the checkpoint that the run resumes from; None: the files are started afresh.
        resume_lines: the number that `flush` returned for that checkpoint; None: all lines up to that step are kept.

    Raises:
        UserError: the disk is full, or the folder is read-only or gone; every method raises it as well.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None = None, resume_lines: int | None = None) -> None:
        self._path = RunFolder(run_dir).metrics_file
        self._start = 0 if resume_step is None else resume_step + 1
        with writing(self._path):
            self._lines = _cut(self._path, self._start, resume_lines)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, it stays open
            remove_ends(Path(run_dir))
            file = open(next_events(Path(run_dir)), "xb")  # noqa: SIM115, it stays open
            self._board = Board(file, self._start)

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Writes numbers, or tensors of one element, under tags such as "train/loss"."""
        assert "step" not in values
        row = {tag: value.item() if hasattr(value, "item") else value for tag, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite(row)}, allow_nan=False) + "\n")
            self._file.flush()
            self._lines += 1
            for tag, value in row.items():
                self._board.add(step, summary.scalar(board_tag(tag), value))
            self._board.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes a text card, in Markdown; TensorBoard only."""
        content = summary.text(tag, markdown)
        content.value[0].tag = tag  # without the ending that SummaryWriter gives it
        with writing(self._path):
            self._board.add(step, content)
            self._board.flush()

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Draws a matplotlib figure and writes it as a picture; TensorBoard only."""
        canvas = FigureCanvasAgg(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks is drawn as a box
            canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        with writing(self._path):
            self._board.add(step, summary.image(tag, pixels, dataformats="HWC"))
            self._board.flush()

    def hparams(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        """Writes the run's row of TensorBoard's HPARAMS page, once, at the end of the run; TensorBoard only.

        TensorBoard finds the columns itself, from the rows of all runs: first those in which the runs differ, then the
        others, each in the order of their names, in which capitals come before small letters. Five are shown until the
        user chooses others, and beside them the last values of five curves.

        Args:
            step: the last step.
            results: what the run measured, by titles that begin with a capital, so that they come first.
            settings: nested settings; their keys become "train.lr" and so on.
        """
        columns = {**results, **_flat(settings)}
        # The first part would fix the columns for all runs to those of one; SummaryWriter.add_hparams writes it.
        _, begin, end = summary.hparams(columns, {})
        with writing(self._path):
            self._board.add(step, begin)
            self._board.add(step, end)
            self._board.flush()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Collects what the block writes to TensorBoard, the last of the run, in a file that appears as a whole.

        A run that is stopped inside the block, or after it and before its results are written, comes here again when it
        is resumed; it deletes the file first, so that TensorBoard shows the end of a run once, however often it came.
        """
        board, self._board = self._board, Board(io.BytesIO())
        try:
            yield
            with writing(self._path):
                self._board.flush()
                write_end(self._path.parent, self._board.file.getvalue())
        finally:
            self._board = board

    def flush(self) -> int:
        """Writes everything so far to disk; returns the number of lines in metrics.jsonl, for the checkpoint."""
        with writing(self._path):
            os.fsync(self._file.fileno())
            os.fsync(self._board.file.fileno())
        return self._lines

    def close(self) -> None:
        """Closes the files."""
        with writing(self._path):
            try:
                self._file.close()
            finally:
                self._board.file.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(UserError):  # the error that got us here is the one to show
            self.close()


def board_tag(tag: str) -> str:
    """Returns the tag of a number in TensorBoard, which sorts by tags and opens the first two groups.

    "train/loss" becomes "loss/train" and "val/top1" "metrics/val_top1"; "lr" and others that are of no split become
    "training/lr".
    """
    split, slash, name = tag.rpartition("/")
    if not slash:
        return f"training/{tag}"
    return f"loss/{split}" if name == "loss" else f"metrics/{split}_{name}"


def _cut(path: Path, end: int, most: int | None) -> int:
    """Keeps the first `most` whole lines of metrics.jsonl whose step is less than `end`; returns their number."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    kept = [line for line in lines if step_of(line) < end][:most]
    write_text_atomic(path, "".join(line + "\n" for line in kept))
    return len(kept)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flattens nested settings to dotted keys; values that TensorBoard has no type for, such as lists, become JSON."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
