"""Records the numbers and pictures of a run during training, in metrics.jsonl and in TensorBoard's event files."""

from __future__ import annotations

import io
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from engine.files import finite, write_text_atomic, writing
from engine.runs.folder import RunFolder
from engine.runs.records.metrics import step_of
from models.settings import UserError

EVENTS = "events.out.tfevents."  # how the names of event files begin
ENDING = ".end"  # and how that of the last one ends


class Tracker:
    """Writes the numbers and pictures of one run.

    Each call of `scalars` writes one line of metrics.jsonl, `{"step": 40, "train/loss": 1.5, ...}`, with null for nan
    and inf; TensorBoard gets the same numbers, and also the pictures and settings.

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
            for old in Path(run_dir).glob(f"{EVENTS}*{ENDING}"):  # an end of the run that is not its end any more
                old.unlink()
            file = open(_next_events(Path(run_dir)), "xb")  # noqa: SIM115, it stays open
            self._board = _Board(file, self._start)

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Writes numbers, or tensors of one element, under tags such as "train/loss"."""
        assert "step" not in values
        row = {tag: value.item() if hasattr(value, "item") else value for tag, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite(row)}, allow_nan=False) + "\n")
            self._file.flush()
            self._lines += 1
            for tag, value in row.items():
                self._board.add(step, summary.scalar(tag, value))
            self._board.flush()

    def curve(self, tag: str, values: Sequence[float]) -> None:
        """Plots numbers over an axis other than steps, such as the number of the block, from 1; TensorBoard only."""
        with writing(self._path):
            for position, value in enumerate(values, 1):
                if position >= self._start:  # TensorBoard has kept what is before it
                    self._board.add(position, summary.scalar(tag, value))
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

    def hparams(self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Writes the entry of TensorBoard's HParams page, once, at the end of the run; TensorBoard only.

        Args:
            step: the last step.
            settings: nested settings; their keys become "train.lr" and so on.
            metrics: the results by tag, such as {"test/top1": 0.91}; drawn as scalars, too.
        """
        metrics = {tag: float(value) for tag, value in metrics.items()}
        entry = summary.hparams(_flat(settings), metrics)  # SummaryWriter.add_hparams would make a run of its own
        with writing(self._path):
            for part in [*entry, *(summary.scalar(tag, value) for tag, value in metrics.items())]:
                self._board.add(step, part)
            self._board.flush()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Collects what the block writes to TensorBoard, the last of the run, in a file that appears as a whole.

        A run that is stopped inside the block, or after it and before its results are written, comes here again when it
        is resumed; it deletes the file first, so that TensorBoard shows the end of a run once, however often it came.
        """
        board, self._board = self._board, _Board(io.BytesIO())
        try:
            yield
            with writing(self._path):
                self._board.flush()
                _write_whole(_next_events(self._path.parent, ENDING), self._board.file.getvalue())
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


class _Board:
    """Writes TensorBoard's events to a file, in the thread of the caller.

    SummaryWriter writes in a thread of its own, where a full disk ends in a traceback, and kill -9 loses the last two
    minutes.

    Args:
        file: an empty file that stays open.
        purge_step: events from this step on, in files before this one, are discarded; None: none are.
    """

    def __init__(self, file: Any, purge_step: int | None = None) -> None:
        self.file = file
        self._records = RecordWriter(self.file)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def add(self, step: int, content: Summary) -> None:
        self._write(Event(step=step, summary=content))

    def flush(self) -> None:
        self._records.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _next_events(folder: Path, end: str = "") -> Path:
    """Returns the path of a new event file.

    TensorBoard reads a folder's files in the order of their names, which begin with a time; here a file that is opened
    later gets a later name, even if the clock was set back.
    """
    stamps = [path.name.split(".")[3] for path in folder.glob(f"{EVENTS}*")]
    stamp = max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
    return folder / f"{EVENTS}{stamp:010d}.{socket.gethostname()}.{os.getpid()}{end}"


def _write_whole(path: Path, content: bytes) -> None:
    """Writes an event file. TensorBoard reads every file that has tfevents in its name, so that a part has none."""
    part = path.with_name(".end-of-run.tmp")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


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
