"""Exports models, wrapped or not, to ONNX, to OpenVINO, or to a program of torch.export.

    agreement = export_model(model, "onnx", "model.onnx", images)   # images (n, C, H, W) to check the file on
    agreement = export_model(model, "onnx", "model.onnx", (3, 224, 224))   # on random images of this size
    runtime, metadata = load("model.onnx")
    logits = runtime(images)
    export_model(model, "onnx", "model_int8.onnx", images, int8=others)   # quantized, calibrated on other images

A file takes its name only after it was read back by the runtime that will run it and gave the model's own logits; see
agreement.py. An int8 file gives others; how far it agrees is returned.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from timm.models import beit
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ..files import replacing
from ..merging.wrapping import without_peft
from ..merging.wrapping.families import from_transformers
from ..settings import UserError, nearest
from .agreement import (
    ABSOLUTE,
    NOISE,
    Agreement,
    Runtime,
    change,
    check_accepts,
    close,
    compare,
    images_to_check,
    random_images,
)
from .formats import FORMATS, LEAST_TORCH, Format, check_packages, conversion_errors
from .huggingface import Logits, without_masks
from .int8 import MOST_IMAGES, quantized

__all__ = [
    "ABSOLUTE",
    "FORMATS",
    "LEAST_TORCH",
    "MOST_IMAGES",
    "NOISE",
    "Agreement",
    "Format",
    "Runtime",
    "check_packages",
    "close",
    "compare",
    "convert_onnx",
    "export_model",
    "load",
    "program_of",
    "random_images",
    "without_masks",
]

BYTES = 2**31 - 2**20  # largest weights in a single ONNX file, with some room for everything else


def export_model(
    model: nn.Module,
    to: str,
    path: str | Path,
    images: Tensor | tuple[int, int, int],
    metadata: Mapping[str, Any] | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    int8: Tensor | None = None,
) -> Agreement:
    """Writes a model in evaluation mode and in fp32, for images of this size in batches of any size.

    Args:
        model: the model, or peft's model around it, or a classifier of Hugging Face's transformers. The numbers of
            tokens that it removes are fixed in the file. It is not changed.
        to: "onnx", "openvino" or "exported", a key of FORMATS.
        path: the file; for OpenVINO the graph, beside which the weights get the suffix .bin. If the export fails, an
            older file at this path is left as it was.
        images: normalised images (n, C, H, W), of the kind that the model is for, to check the file on; or the size
            (C, H, W) of an image, to check it on random images.
        metadata: keys and values to store in the file; values that JSON can represent.
        batch_sizes: sizes of the batches in the check.
        int8: normalised images (n, C, H, W) to calibrate on, other ones than `images`: the file in fp32 is checked as
            always, then quantized and compared again. Up to MOST_IMAGES are used.

    Returns:
        How well the file, read back, agrees with the model.

    Raises:
        UserError: the format does not exist, a package is missing or torch is too old, the model does not take these
            images, cannot be converted or gives no finite logits, the file cannot be written, or its logits are not
            the model's; of an int8 file, if it mostly predicts another class than the model.
    """
    if to not in FORMATS:
        raise UserError(f"to = {to!r}: {nearest(to, list(FORMATS))}")
    form, metadata, path = FORMATS[to], dict(metadata or {}), Path(path)
    images = images_to_check(images)
    _check_form(to, path, int8 is not None)
    model = without_peft(copy.deepcopy(model)).to("cpu", torch.float32).eval()
    if from_transformers(type(model)):
        model = Logits(model)
    check_accepts(model, images)
    if form.of_onnx is not None:
        _check_size(to, model)
    try:
        with ExitStack() as stack:
            # Left in reverse order: the file to open takes its name last.
            files = [stack.enter_context(replacing(name)) for name in _names(form, path)]
            with quiet(), conversion_errors(to, metadata.get("method")):
                with nullcontext() if form.of_onnx is None else _unfused(model):
                    program = program_of(model, images.shape[1:])
                graph = form.graph_of(program)
            agreement = compare(model, _written(form, graph, files, metadata), images, batch_sizes)
            if int8 is not None:
                with quiet():
                    graph = quantized(graph, images_to_check(int8))
                agreement = change(model, _written(form, graph, files, metadata), images, batch_sizes)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be written, {reason}; write to another folder") from error
    return replace(agreement, operators=_own_operators(program))


def convert_onnx(source: Path, path: Path, int8: Tensor | None = None) -> None:
    """Writes an exported ONNX file in another form, which is not checked.

    Args:
        source: the ONNX file.
        path: the file to write; its suffix says in which format, ONNX or OpenVINO.
        int8: images to calibrate on: the file is quantized; see `export_model`.
    """
    import onnx  # an extra

    form, graph = FORMATS["onnx" if path.suffix == ".onnx" else "openvino"], onnx.load(source)
    metadata = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert form.of_onnx is not None
    graph = form.of_onnx(graph)
    with quiet(), ExitStack() as stack:
        if int8 is not None:
            graph = quantized(graph, int8)
        form.save(graph, [stack.enter_context(replacing(name)) for name in _names(form, path)], metadata)


def _check_form(to: str, path: Path, int8: bool) -> None:
    """Raises UserError if a format cannot be written to this path, or not quantized, or if a package is missing."""
    form = FORMATS[to]
    if int8 and form.of_onnx is None:
        raise UserError(f"to = {to!r}: has no int8; use onnx or openvino")
    if len(form.suffixes) > 1 and path.suffix != form.suffixes[0]:
        raise UserError(f"{path}: {to} writes a graph and its weights; give a name that ends in {form.suffixes[0]}")
    check_packages(to, int8)


def _check_size(to: str, model: nn.Module) -> None:
    """Raises UserError if a model's weights do not fit into an ONNX file."""
    if sum(p.nbytes for p in (*model.parameters(), *model.buffers())) > BYTES:
        raise UserError(
            f"to = {to!r}: a single ONNX file ends at 2 GB, and this model's weights do not fit; use exported"
        )


def _names(form: Format, path: Path) -> list[Path]:
    """Returns the files of a format; the first has the name that the user chose."""
    return [path, *(path.with_suffix(suffix) for suffix in form.suffixes[1:])]


def _written(form: Format, graph: Any, files: Sequence[BinaryIO], metadata: Mapping[str, Any]) -> Runtime:
    """Writes files, in place of what they held, and returns them in their runtime."""
    for file in files:
        file.seek(0)
        file.truncate()
    with quiet():
        form.save(graph, files, metadata)
        for file in files:
            file.flush()
        return form.read(files)[0]


def program_of(model: nn.Module, shape: Sequence[int]) -> ExportedProgram:
    """Returns torch.export's program of a model in evaluation mode, for images of `shape` (C, H, W)."""
    with torch.no_grad():
        return torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=({0: Dim("batch", min=1)},))


def load(path: str | Path, **how: Any) -> tuple[Runtime, dict[str, Any]]:
    """Returns an exported file as a function from images (B, C, H, W) to logits (B, classes), and its metadata.

    Args:
        path: the file.
        how: `batch_size` of ONNX and OpenVINO, to which the graph is then fixed; `precision` of OpenVINO, "fp32" or
            "bf16".

    Raises:
        UserError: the file does not exist, or is of another kind; or the processor lacks the precision.
    """
    path = Path(path)
    form = next((form for form in FORMATS.values() if form.suffixes[0] == path.suffix), None)
    if form is None or not all(name.is_file() for name in _names(form, path)):
        kinds = ", ".join(" with ".join(form.suffixes) for form in FORMATS.values())
        raise UserError(f"{path}: not an exported file; give one of {kinds}")
    with ExitStack() as stack:
        return form.read([stack.enter_context(name.open("rb")) for name in _names(form, path)], **how)


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
