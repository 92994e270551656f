"""The machine that a program runs on: its device, precision, torch's seeds, memory, and the versions of libraries."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from models.attention import cpu_has_bf16
from models.settings import UserError

# What `train.precision: auto` means on this machine, whatever the processor has: fp32 or bf16.
PRECISION_VARIABLE = "HYBRIDMERGE_PRECISION"
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux
LIBRARIES = ("torch", "torchvision", "timm", "einops", "fvcore", "numpy", "pydantic", "torchmetrics", "tensorboard")


def pick_device(name: str) -> torch.device:
    """Returns the device for a name: `auto` is CUDA if available, else Apple's MPS, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: the name is unknown, or the device is not available here.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device = {name!r}: unknown; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device = {name!r}: {torch.cuda.device_count()} CUDA devices here; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device = {name!r}: MPS is not available here; use auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device = {name!r}: not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def has_bf16(device: torch.device) -> bool:
    """Returns whether the device has bfloat16 arithmetic, so that autocast makes computation faster."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return cpu_has_bf16()  # `train.precision: bf16` turns it on whatever this says
    return False


def pick_autocast(precision: str, device: torch.device) -> torch.autocast:
    """Returns a reusable context manager: bfloat16 autocast for `bf16`, and for `auto` where the device supports it.

    The environment variable HYBRIDMERGE_PRECISION (fp32 or bf16) decides what `auto` means, so that results can be
    compared between machines with and without bf16 units.

    Args:
        precision: auto, fp32 or bf16.
        device: the device to compute on.

    Raises:
        UserError: bf16 on MPS, or an environment variable that is neither fp32 nor bf16.
    """
    if precision == "auto":
        precision = os.environ.get(PRECISION_VARIABLE) or ("bf16" if has_bf16(device) else "fp32")
        if precision not in ("fp32", "bf16"):
            raise UserError(f"{PRECISION_VARIABLE} = {precision!r}: must be fp32 or bf16; correct it, or unset it")
    if precision == "bf16" and device.type == "mps":
        raise UserError("train.precision = 'bf16': not supported on mps; use auto or fp32")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Moves images (B, C, H, W) to the device in channels-last layout, which is faster for convolutions.

    Features of any other shape keep their layout.
    """
    layout = torch.channels_last if images.ndim == 4 else torch.preserve_format
    return images.to(device, memory_format=layout, non_blocking=True)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seeds torch so that the random draws of a step (dropout, stochastic depth) depend on (seed, step) alone.

    Of processes that train together each draws its own numbers, by its rank.

    torch's CPU generator uses only the lower 32 bits of a seed, so both numbers are mixed into these.
    """
    torch.manual_seed((seed * 1_000_003 + step + rank * 2_654_435_761) % 2**32)


def peak_memory(device: torch.device) -> float:
    """Returns the peak memory in MiB: of tensors on a CUDA device, otherwise of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():  # ru_maxrss of a process that another one has started begins at the other's
        lines = dict(line.partition(":")[::2] for line in STATUS.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reset_peak_memory(device: torch.device) -> None:
    """Has `peak_memory` begin anew, at the memory in use now; where the system does not offer it, nothing changes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        CLEAR_REFS.write_text("5")


def device_name(device: torch.device) -> str:
    """Returns the name of the device, with the number of threads for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def commit() -> str | None:
    """Returns the git commit of this code, with `-dirty` if files have changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
