"""Saves and loads checkpoint files, which are written atomically, verified when read, and never execute code.

A checkpoint is written by `torch.save`, so `torch.load(path, weights_only=True)` can read it anywhere, and sealed by
`engine.runs.checkpoints.seal`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from engine.files import replacing
from engine.launch.sharding import part_of, whole
from engine.runs.checkpoints.seal import check_seal, comment_of, seal
from engine.wording import few
from models.archives import in_words, unpacked_size
from models.settings import UserError

FORMAT = 1

WEIGHTS = {"model": dict, "classes": list}  # what every checkpoint of a run holds, and its type

_LARGE = ("model", "optimizer", "ema")
_PLAIN = (type(None), bool, int, float, str)


class NewerFormat(UserError):
    """A checkpoint that a newer version of the code wrote: it is not damaged."""


def save(path: str | Path, state: dict[str, Any], before: Sequence[Path] = ()) -> None:
    """Saves `state` to `path`. The old checkpoint stays there until the new one is complete and on disk.

    Args:
        path: the file; its folder exists.
        state: nested dicts, lists and tuples of tensors, None, bool, int, float and str; the key "format" is reserved.
        before: files that keep the checkpoints before this one, the newest first; the oldest is replaced.

    Raises:
        TypeError: `state` contains anything else.
        UserError: the disk is full, or the folder is read-only or gone; the old checkpoint is kept.
    """
    assert "format" not in state
    _check_plain(state, "state")
    with replacing(Path(path)) as file:
        _write({"format": FORMAT, **state}, file)
        seal(file)
        if before:
            file.flush()
            os.fsync(file.fileno())  # the new one is on disk before an old one loses its name
            _move_on([Path(path), *before])


def _move_on(files: Sequence[Path]) -> None:
    """Gives each file the name of the next, from the end; the first keeps its own too, so that it is always there."""
    for newer, older in reversed(list(pairwise(files))):
        if not newer.is_file():
            continue
        if newer != files[0]:
            os.replace(newer, older)
            continue
        older.unlink(missing_ok=True)
        try:
            os.link(newer, older)
        except OSError:  # a file system without hard links
            os.replace(newer, older)


def load(path: str | Path, needed: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Loads a file written by `save` onto the CPU. Nothing in the file is executed.

    Args:
        path: the file.
        needed: keys that the state must have, and the type of each value.

    Raises:
        NewerFormat: the file is in a newer format.
        UserError: the file is missing, damaged, not a checkpoint, or lacks something.
    """
    path = Path(path)
    try:
        _check_file(path)
        with open(path, "rb") as file:
            check_seal(path, file)
            file.seek(0)
            state = _read(path, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read, {(error.strerror or str(error)).lower()}") from error
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise UserError(f"{path}: not a checkpoint of this program; give one that tools/train.py wrote")
    if state["format"] > FORMAT:
        raise NewerFormat(f"{path}: format {state['format']}, this version reads up to {FORMAT}; update HybridMerge")
    del state["format"]
    if lacking := [key for key, kind in (needed or {}).items() if not isinstance(state.get(key), kind)]:
        raise UserError(f"{path}: incomplete, it has no {few(lacking)}; use another checkpoint of the run")
    return state


def peek(path: Path) -> Mapping[str, Any]:
    """Returns what a checkpoint says beside weights and optimizer, which are memory-mapped and not read.

    The file's digest is not verified. A file that has not changed is read once.

    Returns:
        The state without its large parts; empty if the file is missing, damaged, or not a checkpoint of this program.
    """
    if path.suffix != ".pt" or not path.is_file():
        return {}
    found = path.stat()
    return _peek(path, (found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=128)
def _peek(path: Path, stamp: tuple[int, int, int]) -> Mapping[str, Any]:
    """Reads for `peek`; `stamp` changes with the file."""
    try:
        with open(path, "rb") as file:
            comment_of(path, file)
        state = _read(path, str(path), mmap=True)
    except (OSError, UserError):  # reading the weights reports what is wrong
        return {}
    return {key: value for key, value in state.items() if key not in _LARGE} if isinstance(state, dict) else {}


def statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns the mean and the standard deviation with which the training images of a checkpoint were normalised.

    Returns:
        Both with a number for each channel; None if the file is not a checkpoint of ours, or does not contain them.
    """
    state = peek(path)
    return (state["mean"], state["std"]) if "mean" in state and "std" in state else None


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], what: str, only: set[str] | None = None) -> None:
    """Copies all of `state` into `model`, or raises an error and copies nothing.

    The prefixes of wrappers (`module.` of data-parallel and averaged models, `_orig_mod.` of compiled ones) are ignored
    on both sides.

    Args:
        model: any module.
        state: names and tensors, as returned by `state_dict`.
        what: where `state` comes from, for error messages, such as "runs/x/last.pt".
        only: names of the part of the model's state that `state` contains; None: all of it.

    Raises:
        UserError: names are missing, unexpected or duplicated, or shapes differ.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what}: not a model's weights; give a checkpoint that tools/train.py wrote")
    expected = {_unwrapped(name): name for name in model.state_dict() if only is None or name in only}
    given = {_unwrapped(name): value for name, value in state.items()}
    if len(given) < len(state):
        raise UserError(f"{what}: names some weights twice, with and without a prefix (module.); keep one of each")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    faults = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, the model's is {shapes[key]}"
            for name, key in expected.items()
            if name in given and tuple(given[name].shape) != shapes[key]
        ],
    }
    report = "; ".join(f"{len(names)} {fault} ({few(names)})" for fault, names in faults.items() if names)
    if report:
        raise UserError(f"{what}: the weights do not fit the model: {report}; use the model settings of their run")
    own = model.state_dict()
    parts = {key: part_of(given[name], own[key]) for name, key in expected.items()}
    model.load_state_dict(parts, strict=only is None)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256, in hexadecimal, of named tensors, such as the part of a model that checkpoints leave out."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(whole(state[name]).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_plain(value: Any, where: str) -> None:
    """Allows only the exact types that `weights_only=True` can read back; a numpy float, for example, is refused."""
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            if type(key) not in _PLAIN:
                raise TypeError(f"{where}: key {key!r} is a {_type(key)}; use str or int")
            _check_plain(entry, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{where}[{index}]")
    elif type(value) not in (Tensor, nn.Parameter, *_PLAIN):
        raise TypeError(f"{where} is a {_type(value)}; a checkpoint holds tensors and plain Python values")


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    """Calls `torch.save`, which hides a full disk or a signal behind a RuntimeError about positions in the file."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError | KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a checkpoint file{_checkpoints_in(path)}")
    if not path.exists():
        raise UserError(f"{path}: no such file{_checkpoints_in(path.parent)}")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file; give a checkpoint that tools/train.py wrote")


def _checkpoints_in(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.glob("*.pt"))
    except OSError:
        return ""
    return f"; {folder} has {few(names)}" if names else ""


def _read(path: Path, file: BinaryIO | str, *, mmap: bool = False) -> Any:
    try:
        _check_unpacked(path)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError, UserError):
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain values; refused, none of it was run") from None
    except Exception as error:  # torch's readers raise many types for a file that is not a checkpoint
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason}); use another one") from error


def _check_unpacked(path: Path) -> None:
    """Raises a UserError for a file that takes more memory than its size: `save` compresses nothing."""
    file, size = path.stat().st_size, unpacked_size(path)
    if size > file:
        raise UserError(
            f"{path}: {in_words(file)} that unpack to {in_words(size)}, which tools/train.py did not write; use "
            "another checkpoint of the run"
        )


def _unwrapped(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
