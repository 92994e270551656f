"""The trackers that `log.trackers` can name. A new one is a class like those here, a line in TRACKERS, and its name in
`engine.settings.schema.TrackerName`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from engine.runs.trackers.mlflow import Mlflow
from engine.runs.trackers.sink import About, Sink
from engine.runs.trackers.tensorboard import TensorBoard
from engine.runs.trackers.wandb import Wandb
from models.settings import UserError

TRACKERS: dict[str, Callable[[About], Sink]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb}
EXTRAS = ("mlflow", "wandb")  # trackers that need a module of the same name, and the extra that installs it


def check_installed(names: Iterable[str]) -> None:
    """Imports what trackers need, which takes seconds.

    Raises:
        UserError: it is not installed.
    """
    for name in names:
        if name in EXTRAS:
            try:
                import_module(name)
            except ImportError:
                raise UserError(f"log.trackers: {name} is not installed; pip install -e '.[{name}]'") from None
