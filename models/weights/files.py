"""Reads weights, as tensors by name, from files and run folders, without executing any code in them."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..archives import array_sizes, available_memory, in_words, unpacked_size
from ..settings import UserError, nearest

State = dict[str, Tensor]

# Keys under which checkpoints store a model's weights, in order of preference; averaged weights are the last resort,
# except for the teacher of self-distillation (DINO), whose authors evaluate it in place of the student.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "teacher", "student", "model_ema", "state_dict_ema")

TOO_MUCH = "takes more memory than there is; give a file of the model's weights"
SLACK, TIMES = 2**28, 20  # bytes beside a model's own, and times its own, that a compressed file may unpack to

log = logging.getLogger("hybridmerge")

_ADVICE = "if you trust it, save its tensors alone with torch.save, or as .safetensors"


def read_path(source: str, model_size: int) -> State:
    """Reads weights from a file, in the format of its suffix, or from the best checkpoint of a run folder.

    Args:
        source: the path.
        model_size: bytes of the weights of the model that they are for, which bound what is unpacked.

    Raises:
        UserError: the path does not exist, or the file has an unknown suffix, is unreadable, needs unpickling, has no
            tensors in it, or takes more memory than there is, or far more than the model and the file.
    """
    what = f"model.weights = {source!r}"
    try:
        path = _file(Path(source).expanduser(), what)
        _check_size(path, model_size, what)
        content = READERS[path.suffix.lower()](path)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{what}: {TOO_MUCH}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{what}: {_refusal(error)}") from None
    except Exception as error:  # the readers raise many types for a file that is not in their format
        if "alloc_cpu" in str(error):
            raise UserError(f"{what}: {TOO_MUCH}") from None
        raise UserError(f"{what}: cannot be read ({reason(error)}); fetch it again, or give another") from error
    if isinstance(content, Mapping) and content.get("partial") is True:
        raise UserError(f"{what}: contains only what its run trained; give the run folder, which leads to the rest")
    state = unwrap(content, what)
    _check_claims(sum(value.numel() * value.element_size() for value in state.values()), path, model_size, what)
    return state


def unwrap(content: Any, what: str) -> State:
    """Returns a checkpoint's tensors by name, without wrappers such as "state_dict" and the prefix `module.`.

    Args:
        content: the content of the file.
        what: key and value for error messages.

    Raises:
        UserError: there are no tensors, two have the same name, or one is not an ordinary tensor.
    """
    for _ in range(len(WRAPPERS)):  # bounded: a pickled dict can hold itself
        wrapped = content if isinstance(content, Mapping) else {}
        inner = [key for key in WRAPPERS if isinstance(wrapped.get(key), Mapping)]
        if not inner:
            break
        if others := [key for key in inner[1:] if wrapped[key]]:
            log.warning("%s: holds %s as well; %s is used", what, " and ".join(others), inner[0])
        content = wrapped[inner[0]]
    entries = content.items() if isinstance(content, Mapping) else ()
    named = [(_plain(name), value.detach()) for name, value in entries if isinstance(value, Tensor)]
    state = dict(named)
    if not state:
        raise UserError(f"{what}: contains no named weights; give a model's state dict")
    if len(state) < len(named):
        raise UserError(f"{what}: names some weights twice, with and without a prefix (module.); keep one of each")
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_nested:
            kind = "without values (meta)" if value.device.type == "meta" else "sparse or nested"
            raise UserError(f"{what}: {name} is a tensor {kind}; save ordinary tensors")
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


def _check_size(path: Path, model_size: int, what: str) -> None:
    """Raises a UserError for a file that takes more memory than there is, or unpacks to far more than the model."""
    size = sum(array_sizes(path).values()) if path.suffix.lower() == ".npz" else unpacked_size(path)
    if size > (free := available_memory()):
        raise UserError(
            f"{what}: takes {in_words(size)} of memory, {in_words(free)} are free; use a machine with more, or a file "
            "of the model's weights alone"
        )
    _check_claims(size, path, model_size, what)


def _check_claims(size: int, path: Path, model_size: int, what: str) -> None:
    """Raises a UserError if the tensors of a file take far more bytes, `size`, than the file and the model."""
    file = path.stat().st_size
    if size > max(2 * file, TIMES * model_size + SLACK):
        raise UserError(
            f"{what}: {in_words(file)} that unpack to {in_words(size)}, and the model has {in_words(model_size)} of "
            "weights; give a file of the model's weights"
        )


def _torch(path: Path) -> Any:
    with warnings.catch_warnings():  # of pickle protocols and sparse tensors; what matters is an error here
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path, device="cpu")


def _numpy(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    floats = {
        name: array for name, array in arrays.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    }
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in floats.items()}


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
