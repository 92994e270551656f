"""Reads weights from files and run folders: names and tensors, and never code."""

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

# What checkpoints keep a model's weights under, best first: averaged weights only where there are no others.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")

_ADVICE = "if you trust it, save its tensors alone with torch.save, or as .safetensors"


def read_path(source: str) -> State:
    """Weights from a file, by its suffix, or from the best checkpoint of a run folder.

    Raises:
        UserError: no such path, an unknown suffix, an unreadable file, one that needs unpickling, no tensors in it.
    """
    what = f"model.weights = {source!r}"
    try:
        path = _file(Path(source).expanduser(), what)
        found = READERS[path.suffix.lower()](path)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{what}: {_refusal(error)}") from None
    except Exception as error:  # whatever the formats' readers meet in a file that is not what it says it is
        raise UserError(f"{what}: cannot be read ({reason(error)}); fetch it again, or give another") from error
    if isinstance(found, Mapping) and found.get("partial") is True:
        raise UserError(f"{what}: holds only what learnt in its run; give the run's folder, which knows the rest")
    return unwrap(found, what)


def unwrap(found: Any, what: str) -> State:
    """A checkpoint's tensors by name, without wrappers such as "state_dict" and the prefix `module.`.

    Args:
        found: what the file holds.
        what: key and value for the error.
    """
    for _ in range(len(WRAPPERS)):  # bounded: a pickled dict can hold itself
        inner = [found[key] for key in WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        if not inner:
            break
        found = inner[0]
    entries = found.items() if isinstance(found, Mapping) else ()
    named = [(_plain(name), value.detach()) for name, value in entries if isinstance(value, Tensor)]
    state = dict(named)
    if not state:
        raise UserError(f"{what}: holds no weights by name; give a model's state dict")
    if len(state) < len(named):
        raise UserError(f"{what}: names some weights twice, with and without a prefix (module.); keep one of each")
    return state


def reason(error: Exception) -> str:
    """An exception of someone else's code in a few words, on one line."""
    return re.split(r"\n|\. ", str(error).strip())[0][:160].rstrip(" .") or type(error).__name__


def _file(path: Path, what: str) -> Path:
    """The file to read: `path`, or the best checkpoint of the run folder that it is."""
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
    """A name without the prefixes of data-parallel and compiled models."""
    name = str(name).replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
