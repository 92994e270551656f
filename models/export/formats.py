"""The kinds of files that a model can be exported to: ONNX, OpenVINO's, and programs of torch.export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO

import torch
from torch.export import Dim, ExportedProgram

from ..settings import UserError
from . import openvino
from .agreement import Runtime

LEAST_TORCH = "2.13"  # the oldest version that all of this was tested with
METADATA = "metadata.json"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffixes: of the files' names, that of the file to open first; the others lie beside it.
        save: writes a graph and metadata into one file for each suffix.
        read: returns the files' content as a function from images to logits, and its metadata.
        of_onnx: makes the graph of an onnx.ModelProto; such a graph can be quantized. None: the program is the graph.
        packages: what this needs, besides torch.
    """

    suffixes: tuple[str, ...]
    save: Callable[[Any, Sequence[BinaryIO], Mapping[str, Any]], None]
    read: Callable[[Sequence[BinaryIO]], tuple[Runtime, dict[str, Any]]]
    of_onnx: Callable[[Any], Any] | None = None
    packages: tuple[str, ...] = ()

    def graph_of(self, program: ExportedProgram) -> Any:
        """Returns what is saved of a program."""
        return program if self.of_onnx is None else self.of_onnx(onnx_of(program))


def onnx_of(program: ExportedProgram) -> Any:
    """Returns a program as onnx.ModelProto."""
    converted = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: Dim("batch", min=1)},),
        custom_translation_table=translations(),
    )
    return converted.model_proto


def save_onnx(graph: Any, files: Sequence[BinaryIO], metadata: Mapping[str, Any]) -> None:
    from onnx.helper import set_model_props  # an extra

    set_model_props(graph, {key: json.dumps(value) for key, value in metadata.items()})
    files[0].write(graph.SerializeToString())


def read_onnx(files: Sequence[BinaryIO], batch_size: int | None = None) -> tuple[Runtime, dict[str, Any]]:
    """Returns an ONNX file in ONNX Runtime, and its metadata.

    Args:
        files: the file.
        batch_size: images of every batch, for which the graph is then simplified; None: batches of any size.
    """
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if batch_size is not None:
        options.add_free_dimension_override_by_name("batch", batch_size)
    files[0].seek(0)
    session = onnxruntime.InferenceSession(files[0].read(), options, providers=["CPUExecutionProvider"])
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), metadata


def _save_exported(program: ExportedProgram, files: Sequence[BinaryIO], metadata: Mapping[str, Any]) -> None:
    torch.export.save(program.run_decompositions({}), files[0], extra_files={METADATA: json.dumps(metadata)})


def _read_exported(files: Sequence[BinaryIO]) -> tuple[Runtime, dict[str, Any]]:
    files[0].seek(0)
    extra = {METADATA: ""}
    program = torch.export.load(files[0], extra_files=extra)
    return program.module(), json.loads(extra[METADATA])


ONNX = ("onnx", "onnxscript")
FORMATS = {
    "onnx": Format((".onnx",), save_onnx, read_onnx, lambda graph: graph, (*ONNX, "onnxruntime")),
    "openvino": Format((".xml", ".bin"), openvino.save, openvino.read, openvino.from_onnx, (*ONNX, "openvino")),
    "exported": Format((".pt2",), _save_exported, _read_exported),
}


def translations() -> dict[Callable, Callable]:
    """Returns ONNX translations of operators that torch's converter has none for.

    TopK serves as a stable sort: "Given two equivalent values, this operator uses the indices along the axis as a
    tiebreaker. That is, the element with the lower index will appear first" (ONNX operators, TopK, since version 11).
    """
    from onnxscript import opset18 as op  # an extra

    def sort_stable(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)

    def euclidean(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
        assert p == 2, p
        rows, columns = (op.Unsqueeze(x, op.Constant(value_ints=[axis])) for x, axis in ((x1, -2), (x2, -3)))
        return op.ReduceL2(op.Sub(rows, columns), op.Constant(value_ints=[-1]), keepdims=0)

    aten = torch.ops.aten
    return {aten.sort.stable: sort_stable, aten._cdist_forward.default: euclidean}


def check_packages(to: str, int8: bool = False, what: str | None = None) -> None:
    """Raises UserError if torch is too old for a format, or a package that it needs is not installed.

    Args:
        to: a key of FORMATS.
        int8: whether the file is quantized.
        what: what asks for it, for the error.
    """
    what = what or f"to = {to!r}"
    if torch.__version__ < LEAST_TORCH:
        raise UserError(f"{what}: needs torch {LEAST_TORCH} or newer, this is {torch.__version__}; upgrade torch")
    packages = (*FORMATS[to].packages, *(("nncf",) if int8 else ()))
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(f"{what}: {error}; pip install {' '.join(packages)}") from None


@contextmanager
def conversion_errors(to: str, method: str | None) -> Iterator[None]:
    """Replaces the converter's long report by one line: the operator that it cannot convert, or the innermost cause.

    Args:
        to: the format, for the error.
        method: the merging method, for the error; None if it is not known.
    """
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        if missing := sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)))):
            key = f"to = {to!r}" if method is None else f"merge.method = {method!r}"
            why = f"ONNX has no operator for {', '.join(missing)}; use exported, or another method"
            raise UserError(f"{key}: {why}") from error
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"to = {to!r}: torch's converter failed: {first}; use exported") from error
