"""The trackers that `log.trackers` can name. A new one is a class like those here, a line in TRACKERS, and its name in
`engine.settings.schema.TrackerName`."""

from __future__ import annotations

from collections.abc import Callable

from engine.runs.trackers.mlflow import Mlflow
from engine.runs.trackers.sink import About, Sink
from engine.runs.trackers.tensorboard import TensorBoard
from engine.runs.trackers.wandb import Wandb

TRACKERS: dict[str, Callable[[About], Sink]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb}
