"""TensorBoard: event files in the run folder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary

from engine.files import writing
from engine.runs.trackers.board import Board, next_events, write_end
from engine.runs.trackers.sink import About, Pixels


class TensorBoard:
    """The event files of a run.

    Whatever has a single value at the end of a run is a text or an entry of the HPARAMS page: as a scalar it would be a
    chart with one dot. The files of a resumed run tell TensorBoard to discard the events of earlier ones from its first
    step on.
    """

    discards = True

    def __init__(self, about: About) -> None:
        self._folder = about.folder
        file = open(next_events(about.folder), "xb")  # noqa: SIM115, it stays open
        self._board = Board(file, about.start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers under the tags of `board_tag`."""
        for tag, value in values.items():
            self._board.add(step, summary.scalar(board_tag(tag), value))
        self._board.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Writes a text card, in Markdown."""
        content = summary.text(tag, markdown)
        content.value[0].tag = tag  # without the ending that SummaryWriter gives it
        self._board.add(step, content)
        self._board.flush()

    def picture(self, step: int, tag: str, pixels: Pixels) -> None:
        """Writes a picture."""
        png = io.BytesIO()  # `summary.image` goes through float32, which takes longer than the PNG
        Image.fromarray(pixels).save(png, format="png")
        height, width, channels = pixels.shape
        size = {"height": height, "width": width, "colorspace": channels}
        image = Summary.Image(**size, encoded_image_string=png.getvalue())
        self._board.add(step, Summary(value=[Summary.Value(tag=tag, image=image)]))
        self._board.flush()

    def results(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        """Writes the run's row of the HPARAMS page, once, at the end of the run.

        TensorBoard finds the columns itself, from the rows of all runs: first those in which the runs differ, then the
        others, each in the order of their names, in which capitals come before small letters. Five are shown until the
        user chooses others, and beside them the last values of five curves.

        Args:
            step: the last step.
            results: what the run measured, by titles that begin with a capital, so that they come first.
            settings: by dotted key.
        """
        # The first part would fix the columns for all runs to those of one; SummaryWriter.add_hparams writes it.
        _, begin, end = summary.hparams({**results, **settings}, {})
        self._board.add(step, begin)
        self._board.add(step, end)
        self._board.flush()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Collects what the block writes, the last of the run, in a file that appears as a whole.

        A run that is stopped inside the block, or after it and before its results are written, comes here again when it
        is resumed; the file is deleted first, so that TensorBoard shows the end of a run once, however often it came.
        """
        board, self._board = self._board, Board(io.BytesIO())
        try:
            yield
            with writing(self._folder):
                self._board.flush()
                write_end(self._folder, self._board.file.getvalue())
        finally:
            self._board = board

    def flush(self) -> None:
        os.fsync(self._board.file.fileno())

    def close(self, *, finished: bool) -> None:
        self._board.file.close()


def board_tag(tag: str) -> str:
    """Returns the tag of a number in TensorBoard, which sorts by tags and opens the first two groups.

    "train/loss" becomes "loss/train" and "val/top1" "metrics/val_top1"; "lr" and others that are of no split become
    "training/lr".
    """
    split, slash, name = tag.rpartition("/")
    if not slash:
        return f"training/{tag}"
    return f"loss/{split}" if name == "loss" else f"metrics/{split}_{name}"
