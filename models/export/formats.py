"""The kinds of files that a model can be exported to: ONNX, and programs of torch.export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch.export import Dim, ExportedProgram

from ..settings import UserError
from .agreement import Runtime

LEAST_TORCH = "2.13"  # the oldest version that all of this was tested with
METADATA = "metadata.json"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of the file's name.
        write: writes a program and its metadata.
        read: returns a file as a function from images to logits, and its metadata.
    """

    suffix: str
    write: Callable[[ExportedProgram, BinaryIO, Mapping[str, Any]], None]
    read: Callable[[BinaryIO], tuple[Runtime, dict[str, Any]]]


def _write_onnx(program: ExportedProgram, file: BinaryIO, metadata: Mapping[str, Any]) -> None:
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: Dim("batch", min=1)},),
        custom_translation_table=translations(),
    )
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    file.write(onnx.model_proto.SerializeToString())


def _read_onnx(file: BinaryIO) -> tuple[Runtime, dict[str, Any]]:
    import onnxruntime  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file.seek(0)
    session = onnxruntime.InferenceSession(file.read(), options, providers=["CPUExecutionProvider"])
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), metadata


def _write_exported(program: ExportedProgram, file: BinaryIO, metadata: Mapping[str, Any]) -> None:
    torch.export.save(program.run_decompositions({}), file, extra_files={METADATA: json.dumps(metadata)})


def _read_exported(file: BinaryIO) -> tuple[Runtime, dict[str, Any]]:
    file.seek(0)
    extra = {METADATA: ""}
    program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[METADATA])


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "exported": Format(".pt2", _write_exported, _read_exported),
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


def check_packages(to: str) -> None:
    """Raises UserError if torch is too old for a format, or a package that it needs is not installed."""
    if torch.__version__ < LEAST_TORCH:
        raise UserError(f"to = {to!r}: needs torch {LEAST_TORCH} or newer, this is {torch.__version__}; upgrade torch")
    if to == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"to = {to!r}: {error}; pip install onnx onnxscript onnxruntime") from None


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
