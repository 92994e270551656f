"""Exports models, wrapped or not, to ONNX or to a program of torch.export.

    agreement = export_model(model, "onnx", "model.onnx", images)   # images (n, C, H, W) to check the file on
    agreement = export_model(model, "onnx", "model.onnx", (3, 224, 224))   # on random images of this size
    runtime, metadata = load("model.onnx")
    logits = runtime(images)

A file takes its name only after it was read back by the runtime that will run it and gave the model's own logits; see
agreement.py.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import beit
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ..files import replacing
from ..merging.wrapping import base_model
from ..settings import UserError, nearest
from .agreement import (
    ABSOLUTE,
    NOISE,
    Agreement,
    Runtime,
    check_accepts,
    close,
    compare,
    images_to_check,
    random_images,
)
from .formats import FORMATS, LEAST_TORCH, Format, check_packages, conversion_errors

__all__ = [
    "ABSOLUTE",
    "FORMATS",
    "LEAST_TORCH",
    "NOISE",
    "Agreement",
    "Format",
    "Runtime",
    "close",
    "compare",
    "export_model",
    "load",
    "program_of",
    "random_images",
]

BYTES = 2**31 - 2**20  # largest weights in a single ONNX file, with some room for everything else


def export_model(
    model: nn.Module,
    to: str,
    path: str | Path,
    images: Tensor | tuple[int, int, int],
    metadata: Mapping[str, Any] | None = None,
    batch_sizes: Sequence[int] = (1, 16),
) -> Agreement:
    """Writes a model in evaluation mode and in fp32, for images of this size in batches of any size.

    Args:
        model: the model, or peft's model around it. The numbers of tokens that it removes are fixed in the file. It is
            not changed.
        to: "onnx" or "exported", a key of FORMATS.
        path: the file. If the export fails, an older file at this path is left as it was.
        images: normalised images (n, C, H, W), of the kind that the model is for, to check the file on; or the size
            (C, H, W) of an image, to check it on random images.
        metadata: keys and values to store in the file; values that JSON can represent.
        batch_sizes: sizes of the batches in the check.

    Returns:
        How well the file, read back, agrees with the model.

    Raises:
        UserError: the format does not exist, a package is missing or torch is too old, the model does not take these
            images, cannot be converted or gives no finite logits, the file cannot be written, or its logits are not
            the model's.
    """
    if to not in FORMATS:
        raise UserError(f"to = {to!r}: {nearest(to, list(FORMATS))}")
    form, metadata, path = FORMATS[to], dict(metadata or {}), Path(path)
    images = images_to_check(images)
    check_packages(to)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    check_accepts(model, images)
    if to == "onnx" and sum(p.nbytes for p in (*model.parameters(), *model.buffers())) > BYTES:
        raise UserError(
            "to = 'onnx': a single ONNX file ends at 2 GB, and this model's weights do not fit; use exported"
        )
    try:
        with replacing(path) as file:
            with quiet(), conversion_errors(to, metadata.get("method")):
                with _unfused(model) if to == "onnx" else nullcontext():
                    program = program_of(base_model(model), images.shape[1:])
                form.write(program, file, metadata)
                file.flush()
                runtime, _ = form.read(file)
            agreement = compare(model, runtime, images, batch_sizes)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be written, {reason}; write to another folder") from error
    return replace(agreement, operators=_own_operators(program))


def program_of(model: nn.Module, shape: Sequence[int]) -> ExportedProgram:
    """Returns torch.export's program of a model in evaluation mode, for images of `shape` (C, H, W)."""
    with torch.no_grad():
        return torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=({0: Dim("batch", min=1)},))


def load(path: str | Path) -> tuple[Runtime, dict[str, Any]]:
    """Returns an exported file as a function from images (B, C, H, W) to logits (B, classes), and its metadata.

    Raises:
        UserError: the file does not exist, or is of another kind.
    """
    path = Path(path)
    form = next((form for form in FORMATS.values() if form.suffix == path.suffix), None)
    if form is None or not path.is_file():
        raise UserError(f"{path}: not an exported file; give one that ends in .onnx or .pt2")
    with path.open("rb") as file:
        return form.read(file)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the converter's warnings about its own internals. Errors are not suppressed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """Turns off timm's fused attention in Beit: ONNX's converter decomposes it into strides that the next line of
    timm's code cannot view."""
    fused = [module for module in model.modules() if isinstance(module, beit.Attention) and module.fused_attn]
    try:
        for attention in fused:
            attention.fused_attn = False
        yield
    finally:
        for attention in fused:
            attention.fused_attn = True


def _own_operators(program: ExportedProgram) -> tuple[str, ...]:
    """Returns the names of this package's operators in a program."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    return tuple(sorted(target.name() for target in targets if target.namespace == "hybridmerge"))
