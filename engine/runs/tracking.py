"""Records the numbers and pictures of a run in training: in metrics.jsonl, and by the trackers of `log.trackers`."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from engine.files import finite, write_text_atomic, writing
from engine.runs.folder import RunFolder
from engine.runs.records.metrics import step_of
from engine.runs.trackers import TRACKERS
from engine.runs.trackers.board import remove_ends
from engine.runs.trackers.sink import About, Sink
from models.settings import UserError

log = logging.getLogger("hybridmerge")

Row = tuple[float, tuple[str, ...]]  # a step and its tags


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
    and inf. The trackers get the same numbers, and also pictures, texts and settings.

    A resumed run continues the files where its checkpoint left them: lines that the interrupted run wrote after the
    checkpoint are deleted, and TensorBoard is told to discard its events after that step. A tracker that cannot discard
    anything has these numbers already, and is not given them again. For this to be exact, log first, then call
    `flush`, then save the checkpoint with the step and the number that `flush` returned.

    A tracker that fails while the run trains is named in the log and left out from there on. TensorBoard's files lie
    in the run folder, as metrics.jsonl does: where they cannot be written, nothing can.

    Args:
        run_dir: the run folder, which must exist.
        resume_step: the step of the checkpoint that the run resumes from; None: the files are started afresh.
        resume_lines: the number that `flush` returned for that checkpoint; None: all lines up to that step are kept.
        trackers: names in TRACKERS.
        title: what the run is called.
        home: the folder of all runs; None: that in which the run folder lies.
        settings: nested settings; their keys become "train.lr" and so on.

    Raises:
        UserError: the disk is full, or the folder is read-only or gone, which every method raises as well; a tracker
            cannot begin.
    """

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int | None = None,
        resume_lines: int | None = None,
        *,
        trackers: Sequence[str] = ("tensorboard",),
        title: str = "",
        home: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = RunFolder(run_dir).metrics_file
        start = 0 if resume_step is None else resume_step + 1
        about = About(Path(run_dir), start, title, home, _flat(settings or {}))
        self._sinks: dict[str, Sink] = {}
        with writing(self._path), ExitStack() as opened:
            self._lines, self._told = _cut(self._path, start, resume_lines)
            self._file = opened.enter_context(open(self._path, "a", encoding="utf-8"))
            remove_ends(Path(run_dir))
            for name in dict.fromkeys(trackers):  # each once
                self._sinks[name] = _begun(name, about)
                opened.callback(self._sinks[name].close, finished=False)
            opened.pop_all()

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Writes numbers, or tensors of one element, under tags such as "train/loss"."""
        assert "step" not in values
        row = {tag: value.item() if hasattr(value, "item") else value for tag, value in values.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite(row)}, allow_nan=False) + "\n")
            self._file.flush()
            self._lines += 1
        known = (step, tuple(row)) in self._told
        self._tell(lambda sink: None if known and not sink.discards else sink.scalars(step, row))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes a text card, in Markdown; for trackers only."""
        self._tell(lambda sink: sink.text(step, tag, markdown))

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Draws a matplotlib figure and writes it as a picture; for trackers only."""
        canvas = FigureCanvasAgg(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks is drawn as a box
            canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        self._tell(lambda sink: sink.picture(step, tag, pixels))

    def hparams(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        """Writes what the run measured, and its settings, once, at the end of the run; for trackers only.

        Args:
            step: the last step.
            results: by titles that begin with a capital, so that TensorBoard shows them first.
            settings: nested settings; their keys become "train.lr" and so on.
        """
        flat = _flat(settings)
        self._tell(lambda sink: sink.results(step, results, flat))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """A block in which the last of the run is written; see `TensorBoard.ending`."""
        with ExitStack() as endings:
            for sink in self._sinks.values():
                endings.enter_context(sink.ending())
            yield

    def flush(self) -> int:
        """Writes everything so far to disk; returns the number of lines in metrics.jsonl, for the checkpoint."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        self._tell(lambda sink: sink.flush())
        return self._lines

    def close(self, *, finished: bool = True) -> None:
        """Closes the files, and ends the session of each tracker; `finished`: without an error or a signal."""
        with writing(self._path):
            try:
                self._file.close()
            finally:
                self._tell(lambda sink: sink.close(finished=finished))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with suppress(UserError):  # the error that got us here is the one to show
            self.close(finished=False)

    def _tell(self, what: Callable[[Sink], None]) -> None:
        """Gives something to every tracker; one that fails is left out from there on."""
        for name, sink in list(self._sinks.items()):
            try:
                with writing(self._path) if sink.discards else nullcontext():
                    what(sink)
            except Exception as error:
                if sink.discards:
                    raise
                log.warning("log.trackers: %s gets nothing more: %s", name, _first_line(error))
                del self._sinks[name]


def _begun(name: str, about: About) -> Sink:
    """Returns a tracker that is ready.

    Raises:
        UserError: it is not.
        OSError: the disk is full, or the folder read-only.
    """
    try:
        return TRACKERS[name](about)
    except Exception as error:
        if isinstance(error, OSError) and name == "tensorboard":  # about the run folder
            raise
        raise UserError(
            f"log.trackers: {name} cannot begin: {_first_line(error)}; mend this, or leave it out"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cut(path: Path, end: int, most: int | None) -> tuple[int, set[Row]]:
    """Keeps the first `most` whole lines of metrics.jsonl whose step is less than `end`; returns their number, and the
    step and tags of those that it deletes."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    kept = [line for line in lines if step_of(line) < end][:most]
    write_text_atomic(path, "".join(line + "\n" for line in kept))
    later = [line for line in lines if step_of(line) != float("inf")][len(kept) :]
    return len(kept), {(step_of(line), tuple(tag for tag in json.loads(line) if tag != "step")) for line in later}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flattens nested settings to dotted keys; values that TensorBoard has no type for, such as lists, become JSON."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
