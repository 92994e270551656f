"""Weights & Biases, offline unless WANDB_MODE says otherwise: files in RUN/wandb, which `wandb sync` uploads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import uuid4

from engine.runs.trackers.sink import PROJECT, About, Pixels, keep_id, kept_id


class Wandb:
    """A run of Weights & Biases. Each session of a run that was resumed leaves a folder, all with the run's id."""

    discards = False

    def __init__(self, about: About) -> None:
        import wandb

        self._wandb: Any = wandb
        identity = kept_id(about.folder, "wandb")
        if identity is None:
            identity = uuid4().hex[:8]
            keep_id(about.folder, "wandb", identity)
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # which wandb checks
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=about.title or None,
            dir=str(about.folder),
            config=dict(about.settings),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),  # what is printed is ours
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._run.summary[tag] = markdown

    def picture(self, step: int, tag: str, pixels: Pixels) -> None:
        self._run.log({tag: self._wandb.Image(pixels)}, step=step)

    def results(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(results))

    def ending(self) -> AbstractContextManager[None]:
        return nullcontext()

    def flush(self) -> None:
        """Does nothing: a process of its own writes what it was given."""

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
