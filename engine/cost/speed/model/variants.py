"""What is timed of a model: each batch size in each runtime and precision, with each implementation of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from engine.cost.speed.model.kernels import AUTO, KERNELS, kernels_of
from models.settings import UserError, nearest

UNMERGED = "unmerged"


@dataclass(frozen=True)
class Runtime:
    """What runs a model.

    Attributes:
        trains: whether it runs training steps.
        device: the type of device that it needs; None: any.
        precisions: keys of PRECISIONS in which it computes.
        format: that of the file that it runs, a key of `models.export.FORMATS`; None: it runs the model itself. A file
            has attention of its own.
    """

    trains: bool = False
    device: str | None = None
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    format: str | None = None


RUNTIMES = {
    "eager": Runtime(trains=True),
    "compiled": Runtime(trains=True),
    "onnx": Runtime(device="cpu", precisions=("fp32", "int8"), format="onnx"),
    "openvino": Runtime(device="cpu", precisions=("fp32", "bf16", "int8"), format="openvino"),
    "graph": Runtime(device="cuda"),
    "compiled-graph": Runtime(device="cuda"),
}
# name -> the type of autocast, and the types of devices that it is for; int8 is that of files alone
PRECISIONS: dict[str, tuple[torch.dtype | None, tuple[str, ...]]] = {
    "fp32": (None, ("cpu", "cuda", "mps")),
    "bf16": (torch.bfloat16, ("cpu", "cuda")),
    "fp16": (torch.float16, ("cuda",)),
    "int8": (None, ("cpu",)),
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

    A runtime of files has its own attention: it is timed once for each batch size and precision that it has.

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
        if step == "train" and not RUNTIMES[runtime].trains:
            continue
        precisions = [name for name in asked.precisions if name in RUNTIMES[runtime].precisions]
        ways = list(product(precisions, [AUTO] if RUNTIMES[runtime].format else asked.attentions))
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
        needed = RUNTIMES[runtime].device
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
    for runtime in asked.runtimes:
        if not set(RUNTIMES[runtime].precisions) & set(asked.precisions):
            known = " or ".join(RUNTIMES[runtime].precisions)
            raise UserError(
                f"--runtimes {runtime}: not in {asked.precisions[-1]}; add --precision {known}, or leave it out"
            )
        if not RUNTIMES[runtime].trains and "forward" not in asked.steps:
            raise UserError(f"--runtimes {runtime}: does not train; leave it out, or add --steps forward")
    for precision in asked.precisions:
        if not any(precision in RUNTIMES[runtime].precisions for runtime in asked.runtimes):
            known = " or ".join(name for name, runtime in RUNTIMES.items() if precision in runtime.precisions)
            raise UserError(f"--precision {precision}: not in these runtimes; add --runtimes {known}, or leave it out")
    if all(RUNTIMES[runtime].format for runtime in asked.runtimes) and set(asked.attentions) != {AUTO}:
        raise UserError(
            f"--attention {asked.attentions[-1]}: has no effect on {asked.runtimes[-1]}; add --runtimes eager"
        )


def check_installed(asked: Asked) -> None:
    """Raises UserError if a package that a runtime of files needs is not installed."""
    for name in asked.runtimes:
        if to := RUNTIMES[name].format:
            from models.export import check_packages

            for needed in ("onnx", to):  # every file is made from ONNX's, which ONNX Runtime checks
                check_packages(needed, "int8" in asked.precisions, f"--runtimes {name}")
