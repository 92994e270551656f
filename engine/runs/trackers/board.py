"""Writes TensorBoard's event files: `Board`, and how the files are named."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from engine.files import replacing

EVENTS = "events.out.tfevents."  # how the names of event files begin
ENDING = ".end"  # and how that of the last one ends
EXPLAINED_ENDING = ".explained"  # likewise, one with pictures of explanations


class Board:
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


def next_events(folder: Path, end: str = "") -> Path:
    """Returns the path of a new event file.

    TensorBoard reads a folder's files in the order of their names, which begin with a time; here a file that is opened
    later gets a later name, even if the clock was set back.
    """
    stamps = [path.name.split(".")[3] for path in folder.glob(f"{EVENTS}*")]
    stamp = max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdecimal())])
    return folder / f"{EVENTS}{stamp:010d}.{socket.gethostname()}.{os.getpid()}{end}"


def picture_of(tag: str, file: Path) -> Summary:
    """A picture for TensorBoard from an image file, PNG or GIF, as it is."""
    with Image.open(file) as image:
        width, height = image.size
        channels = len(image.getbands())
    picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.read_bytes())
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def remove_ends(folder: Path, ending: str = ENDING) -> None:
    """Removes event files that were the last of a run that goes on."""
    for old in folder.glob(f"{EVENTS}*{ending}"):
        old.unlink()


def write_end(folder: Path, content: bytes, ending: str = ENDING) -> None:
    """Writes the last event file of a run, or one with another ending, completely or not at all.

    TensorBoard reads every file that has tfevents in its name, so that the temporary file has none.
    """
    with replacing(next_events(folder, ending), temporary=".end-of-run.tmp") as file:
        file.write(content)
