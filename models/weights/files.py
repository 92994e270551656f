"""Reads weights, as tensors by name, from files and run folders, without executing any code in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..settings import UserError, nearest

State = dict[str, Tensor]

# Keys under which checkpoints store a model's weights, in order of preference; averaged weights are the last resort.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")

_ADVICE = "if you trust it, save its tensors alone with torch.save, or as .safetensors"


def read_path(source: str) -> State:
    """Reads weights from a file, in the format of its suffix, or from the best checkpoint of a run folder.

    Raises:
        UserError: the path does not exist, or the file has an unknown suffix, is unreadable, needs unpickling, or has
            no tensors in it.
    """
    what = f"model.weights = {source!r}"
    try:
        path = _file(Path(source).expanduser(), what)
        content = READERS[path.suffix.lower()](path)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{what}: {_refusal(error)}") from None
    except Exception as error:  # the readers raise many types for a file that is not in their format
        raise UserError(f"{what}: cannot be read ({reason(error)}); fetch it again, or give another") from error
    if isinstance(content, Mapping) and content.get("partial") is True:
        raise UserError(f"{what}: contains only what its run trained; give the run folder, which leads to the rest")
    return unwrap(content, what)


def unwrap(content: Any, what: str) -> State:
    """Returns a checkpoint's tensors by name, without wrappers such as "state_dict" and the prefix `module.`.

    Args:
        content: the content of the file.
        what: key and value for error messages.

    Raises:
        UserError: there are no tensors, or two have the same name.
    """
    for _ in range(len(WRAPPERS)):  # bounded: a pickled dict can hold itself
        wrapped = content if isinstance(content, Mapping) else {}
        inner = [wrapped[key] for key in WRAPPERS if isinstance(wrapped.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    entries = content.items() if isinstance(content, Mapping) else ()
    named = [(_plain(name), value.detach()) for name, value in entries if isinstance(value, Tensor)]
    state = dict(named)
    if not state:
        raise UserError(f"{what}: contains no named weights; give a model's state dict")
    if len(state) < len(named):
        raise UserError(f"{what}: names some weights twice, with and without a prefix (module.); keep one of each")
    return state


def reason(error: Exception) -> str:
    """Summarises an exception from a library on one line."""
    return re.split(r"\n|\. ", str(error).strip())[0][:160].rstrip(" .") or type(error).__name__


def _file(path: Path, what: str) -> Path:
    """Returns the file to read: `path` itself or, for a run folder, its best checkpoint."""
    if path.is_dir():
        if (best := path / "best.pt").is_file():
            return best
        others = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in READERS)
        fix = f"give one of its files: {', '.join(others[:3])}" if others else "give a finished run or a file"
        raise UserError(f"{what}: a folder without best.pt; {fix}")
    if not path.exists():
        fix = "give timm:NAME, torchvision:NAME, a file or a run folder"
        raise UserError(f"{what}: no such file or folder; {fix}")
    if path.suffix.lower() not in READERS:
        raise UserError(f"{what}: unknown suffix; {nearest(path.suffix.lower(), list(READERS))}")
    if path.stat().st_size == 0:
        raise UserError(f"{what}: empty; fetch it again")
    return path


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path, device="cpu")


def _numpy(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind == "f"}


READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _torch,
    ".pt": _torch,
    ".bin": _torch,
    ".tar": _torch,
    ".ckpt": _torch,
    ".safetensors": _safetensors,
    ".npz": _numpy,
}


def _refusal(error: Exception) -> str:
    named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if named is None:
        return "not a file of tensors and plain values; refused, none of it was run"
    return f"needs unpickling of {named[1]}; refused, none of it was run; {_ADVICE}"


def _plain(name: Any) -> str:
    """Returns a name without the prefixes of data-parallel and compiled models."""
    name = str(name).replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
