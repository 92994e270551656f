"""MLflow: by default a database beside the runs, OUT/mlflow.db, which needs no server and no network."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from engine.runs.trackers.sink import PROJECT, About, Pixels, keep_id, kept_id

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read as it is imported; nothing leaves the machine
URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"  # MLflow's own variables
MOST, LONGEST = 100, 6000  # parameters of a call, and characters of a value, that MLflow takes


class Mlflow:
    """A run of MLflow, with the settings as its parameters."""

    discards = False

    def __init__(self, about: About) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        home = about.of_all_runs.resolve()
        own = os.environ.get(URI)
        artifacts = None if own else (home / "mlartifacts").as_uri()
        with _alone(home):
            self._client = MlflowClient(tracking_uri=own or f"sqlite:///{home / 'mlflow.db'}")
            identity = self._experiment(artifacts)
        known = kept_id(about.folder, "mlflow")
        if known is not None:
            self._run: str = known
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(identity, run_name=about.title).info.run_id
        keep_id(about.folder, "mlflow", self._run)
        settings = (Param(_key(key), str(value)[:LONGEST]) for key, value in about.settings.items())
        while some := list(islice(settings, MOST)):
            self._client.log_batch(self._run, params=some)

    def _experiment(self, artifacts: str | None) -> str:
        """Returns the id of the experiment, which is made where there is none."""
        name = os.environ.get(EXPERIMENT, PROJECT)
        found = self._client.get_experiment_by_name(name)
        identity: str = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        return identity

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_key(tag), float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self._client.log_text(self._run, markdown, f"{tag}.md")

    def picture(self, step: int, tag: str, pixels: Pixels) -> None:
        self._client.log_image(self._run, Image.fromarray(pixels), f"{tag}_{step:07d}.png")

    def results(self, step: int, results: Mapping[str, float | str], settings: Mapping[str, Any]) -> None:
        numbers = {title: value for title, value in results.items() if isinstance(value, int | float)}
        self.scalars(step, {title: value for title, value in numbers.items() if math.isfinite(value)})
        for title, value in results.items():
            if title not in numbers:
                self._client.set_tag(self._run, _key(title), value)

    def ending(self) -> AbstractContextManager[None]:
        return nullcontext()

    def flush(self) -> None:
        """Does nothing: each call has written what it was given."""

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """A block that one process at a time runs: MLflow does not guard a new database against runs that begin at once."""
    with open(home / ".mlflow.lock", "w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _key(tag: str) -> str:
    """Returns a name in the characters that MLflow allows."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "" for letter in tag).strip()
