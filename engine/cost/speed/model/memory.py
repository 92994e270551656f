"""The peak memory of a variant, measured in a process of its own: other models would count in a common one."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from engine.cost.speed.model.calls import images_of, prepare
from engine.cost.speed.model.variants import Variant
from engine.machine import peak_memory, reset_peak_memory
from models.builders import build
from models.settings import ModelSettings, UserError

WARM_UP, STEPS = 2, 3  # calls before the peak is reset, and after


@dataclass(frozen=True)
class Job:
    """What a process builds and runs.

    Attributes:
        variant: the variant.
        settings: of its model.
        device: name of the device.
        threads: of torch.
        file: the model's file, for a runtime of files.
    """

    variant: Variant
    settings: ModelSettings
    device: str
    threads: int
    file: Path | None = None


def peak_of(job: Job) -> float:
    """Returns the peak memory of a variant's steps in MiB, after a warm-up: see `engine.machine.peak_memory`.

    On a CPU it is that of the whole process, with Python and its libraries. Compiling and exporting do not count.

    Raises:
        UserError: the process was killed, as the system does when memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(_run, job).result()
        except BrokenProcessPool:
            raise UserError(f"batch size {job.variant.batch_size}: its process was killed; use a smaller one") from None


def _run(job: Job) -> float:
    """Runs a job in this process and returns its peak memory in MiB."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    model = build(job.settings).to(device)
    step, _ = prepare(job.variant, model, images_of(job.settings, job.variant.batch_size, device), job.file)
    for _ in range(WARM_UP):
        step()
    if job.variant.step == "train" or job.file is not None:
        del model  # a training step has a copy
    reset_peak_memory(device)
    for _ in range(STEPS):
        step()
    return peak_memory(device)
