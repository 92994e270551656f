"""Writes and restores the checkpoints of a run: `best.pt`, the weights that are kept, and `last.pt`, to resume from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from engine.data import Data
from engine.files import writing
from engine.launch.sharding import gathered, is_sharded
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import load_trained
from engine.runs.folder import RunFolder
from engine.settings.changes import decisive
from engine.settings.schema import RunSettings
from engine.train.loop.optim import Optimization
from models.finetune import frozen_state, partial_state
from models.settings import UserError


@dataclass
class Progress:
    """How far a run has come: what a checkpoint stores beside weights and optimizer."""

    step: int = 0  # optimizer steps done
    best: float = -1.0  # the best validation score so far
    best_step: int = 0
    seconds: float = 0.0  # spent training, all sessions together
    loss_sum: float = 0.0  # over the images of this epoch so far
    correct: float = 0
    seen: int = 0

    def add(self, losses: list[float], sizes: list[int], correct: float) -> None:
        """Adds the mean losses and the sizes of a step's micro-batches, and how many images were right."""
        self.loss_sum += sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        self.correct += correct
        self.seen += sum(sizes)

    def begin_epoch(self) -> None:
        """Clears the sums of the epoch."""
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0


def progress_of(state: dict) -> Progress:
    """Returns the progress that a checkpoint's state holds.

    Raises:
        TypeError, ValueError: it holds something else.
    """
    progress = Progress(**state["progress"])
    for key, value in asdict(progress).items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{key} = {value!r}")
    return progress


class Checkpoints:
    """Writes and reads the checkpoints of a run folder.

    Args:
        folder: the run folder.
        model: the model that learns, with the weights that the run starts from.
        data: its classes, statistics and fingerprint are stored with the weights.
        settings: of the run; those that decide the result are stored with the weights.
        optimization: the optimizer and the moving average.
        saved_names: the part of the weights to save, where so little learns that the rest is not saved; None: all.
        teacher: digest of the weights of the model that teaches; None: there is none.
        writes: whether this process writes; of several that train together, one does.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        data: Data,
        settings: RunSettings,
        optimization: Optimization,
        saved_names: set[str] | None,
        teacher: str | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.folder, self.model, self.data, self.settings = folder, model, data, settings
        self.optimization, self.saved_names, self.teacher = optimization, saved_names, teacher
        self.writes = writes
        self.frozen_digest = checkpoint.digest_of(frozen_state(model, saved_names))
        self.fingerprint = data.fingerprint()

    @property
    def best(self) -> Path:
        return RunFolder(self.folder).checkpoint("best")

    @property
    def last(self) -> Path:
        return RunFolder(self.folder).checkpoint("last")

    def save_best(self, step: int) -> None:
        """Writes `best.pt`: the weights that are evaluated and kept, after this many steps."""
        state = self._whole({**self._weights(self.optimization.kept_model), "step": step})
        if self.writes:
            checkpoint.save(self.best, state)

    def save_last(self, progress: Progress, lines: int) -> None:
        """Writes `last.pt`: everything that the next step depends on. The one before becomes `last-1.pt`.

        Args:
            progress: of the run.
            lines: the number of lines in `metrics.jsonl`, as `Tracker.flush` returns it.
        """
        average = self.optimization.average
        state = {
            **self._weights(self.model),
            "optimizer": self.optimization.optimizer.state_dict(),
            "ema": None if average is None else average.saved_state(self.saved_names),
            "progress": asdict(progress),
            "lines": lines,
        }
        state = self._whole(state)
        if not self.writes:
            return
        run, keep = RunFolder(self.folder), self.settings.checkpoint.keep
        checkpoint.save(self.last, state, [run.earlier_checkpoint(number) for number in range(1, keep)])
        with writing(self.last):
            for file in run.last_checkpoints[keep:]:  # of a session that kept more
                file.unlink()

    def resume(self, state: dict, file: Path) -> Progress:
        """Restores weights, optimizer and moving average from the state in a checkpoint; returns the progress.

        Raises:
            UserError: it was trained on other images, labels or classes, by another teacher, or is of another model.
        """
        if state["data"] != self.fingerprint:
            raise UserError(
                f"{self.folder}: the images, labels or classes are not those that this run was trained on; "
                "resume on the same data, or start a run under another name="
            )
        if state.get("teacher") != self.teacher:
            raise UserError(
                f"train.teacher = {self.settings.train.teacher!r}: its weights are not those that the run was started "
                "with; give the same teacher, or start a run under another name="
            )
        load_trained(self.model, state, file, self.saved_names)
        try:
            self.optimization.restore(state["optimizer"], state["ema"])
            return progress_of(state)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{file}: optimizer, average or progress are not those of this run ({type(error).__name__}: {error}); "
                "put the run's own checkpoint back, or start the run again under another name="
            ) from error

    def _whole(self, state: dict) -> dict:
        """The state with whole tensors, where the model is split over processes, which all call this."""
        return gathered(state, self.writes) if is_sharded(self.model) else state

    def _weights(self, model: nn.Module) -> dict:
        """What both checkpoints have: the weights, or the part of them that learns, and what they were trained with."""
        return {
            "model": partial_state(model, self.saved_names),
            "partial": self.saved_names is not None,
            "frozen": self.frozen_digest,
            "teacher": self.teacher,
            "classes": self.data.classes,
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "data": self.fingerprint,
            "settings": decisive(self.settings),
        }
