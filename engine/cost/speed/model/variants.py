"""What is timed of a model: each batch size in each runtime and precision, with each implementation of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from engine.cost.speed.model.kernels import AUTO, KERNELS, kernels_of
from models.settings import UserError, nearest

UNMERGED = "unmerged"
# name -> whether it runs training steps, and the type of device that it needs
RUNTIMES: dict[str, tuple[bool, str | None]] = {
    "eager": (True, None),
    "compiled": (True, None),
    "onnx": (False, "cpu"),
    "graph": (False, "cuda"),
    "compiled-graph": (False, "cuda"),
}
# name -> the type of autocast, and the types of devices that it is for
PRECISIONS: dict[str, tuple[torch.dtype | None, tuple[str, ...]]] = {
    "fp32": (None, ("cpu", "cuda", "mps")),
    "bf16": (torch.bfloat16, ("cpu", "cuda")),
    "fp16": (torch.float16, ("cuda",)),
}
STEPS = ("forward", "train")


@dataclass(frozen=True)
class Variant:
    """One row of the table: a model, and how it is run.

    Attributes:
        method: the merging method, UNMERGED, or the name of another model.
        step: one of STEPS. train: the forward pass, the loss, the backward pass and AdamW's update.
        batch_size: images of a batch.
        runtime: a key of RUNTIMES.
        precision: a key of PRECISIONS.
        attention: the implementation of attention that is asked for; AUTO: torch chooses.
    """

    method: str
    step: str
    batch_size: int
    runtime: str
    precision: str
    attention: str


@dataclass(frozen=True)
class Asked:
    """What a user asks to be timed; every combination of these that exists is."""

    batch_sizes: Sequence[int] = (1,)
    runtimes: Sequence[str] = ("eager",)
    precisions: Sequence[str] = ("fp32",)
    attentions: Sequence[str] = (AUTO,)
    steps: Sequence[str] = ("forward",)


def variants(methods: Iterable[str], asked: Asked, device: torch.device) -> list[Variant]:
    """Returns what is timed, the methods of one condition side by side.

    Files of ONNX are in fp32, and their runtime has its own attention: they are timed once for each batch size.

    Args:
        methods: the models: UNMERGED, merging methods, names of other models.
        asked: what is asked for.
        device: the device to compute on.

    Raises:
        UserError: something unknown, or that does not exist on this device, or that has no effect.
    """
    _check(asked, device)
    found = []
    for step, batch_size, runtime in product(asked.steps, asked.batch_sizes, asked.runtimes):
        if step == "train" and not RUNTIMES[runtime][0]:
            continue
        ways = [("fp32", AUTO)] if runtime == "onnx" else list(product(asked.precisions, asked.attentions))
        found += [
            Variant(method, step, batch_size, runtime, *way) for way, method in product(ways, dict.fromkeys(methods))
        ]
    return list(dict.fromkeys(found))


def _check(asked: Asked, device: torch.device) -> None:
    """Raises UserError for a value that is unknown, impossible on this device, or without effect."""
    for batch_size in asked.batch_sizes:
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
    for option, values, known in (
        ("--runtimes", asked.runtimes, [*RUNTIMES]),
        ("--precision", asked.precisions, [*PRECISIONS]),
        ("--attention", asked.attentions, [AUTO, *dict.fromkeys(name for names in KERNELS.values() for name in names)]),
        ("--steps", asked.steps, [*STEPS]),
    ):
        for value in values:
            if value not in known:
                raise UserError(f"{option} {value}: unknown; {nearest(value, known)}")
    for runtime in asked.runtimes:
        needed = RUNTIMES[runtime][1]
        if needed not in (None, device.type):
            raise UserError(f"--runtimes {runtime}: runs on {needed} alone; use --device {needed}")
    for precision in asked.precisions:
        if device.type not in PRECISIONS[precision][1]:
            here = ", ".join(name for name, (_, types) in PRECISIONS.items() if device.type in types)
            raise UserError(f"--precision {precision}: not supported on {device.type}; use {here}")
    for attention in asked.attentions:
        if attention not in (AUTO, *kernels_of(device)):
            here = ", ".join((AUTO, *kernels_of(device)))
            raise UserError(f"--attention {attention}: not on {device.type}; use {here}")
    _check_effects(asked)


def _check_effects(asked: Asked) -> None:
    """Raises UserError for a value that would time nothing."""
    if set(asked.runtimes) == {"onnx"}:
        if set(asked.precisions) != {"fp32"}:
            raise UserError(f"--precision {asked.precisions[-1]}: has no effect on onnx, whose files are in fp32")
        if set(asked.attentions) != {AUTO}:
            raise UserError(f"--attention {asked.attentions[-1]}: has no effect on onnx; add --runtimes eager")
    if "onnx" in asked.runtimes and "fp32" not in asked.precisions:
        raise UserError("--runtimes onnx: its files are in fp32; add --precision fp32, or leave onnx out")
    for runtime in asked.runtimes:
        if not RUNTIMES[runtime][0] and "forward" not in asked.steps:
            raise UserError(f"--runtimes {runtime}: does not train; leave it out, or add --steps forward")
