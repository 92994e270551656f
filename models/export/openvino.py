"""OpenVINO: its own files, made from ONNX, and its runtime."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch

from ..settings import UserError
from .agreement import Runtime
from .signal_stack import signal_stack_kept

METADATA = "hybridmerge"
# OpenVINO's name of each precision. It is always given: left to itself, OpenVINO computes in bf16 wherever the
# processor has it.
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def from_onnx(graph: Any) -> Any:
    """Returns an onnx.ModelProto as openvino.Model.

    ONNX says that of equal values the first in order comes first. OpenVINO's reader of ONNX does not ask its sort for
    that, so it is asked here: equally similar patches would otherwise merge in another order.
    """
    from openvino import Core  # an extra

    model = Core().read_model(io.BytesIO(graph.SerializeToString()))
    for operator in model.get_ops():
        if operator.get_type_name() == "TopK":
            operator.set_attribute("stable", True)
    model.validate_nodes_and_infer_types()
    return model


def save(model: Any, files: Sequence[BinaryIO], metadata: Mapping[str, Any]) -> None:
    """Writes an openvino.Model: its graph into the first file, its weights in fp32 into the second."""
    from openvino import save_model

    model.set_rt_info(json.dumps(dict(metadata)), [METADATA])
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
        for file, suffix in zip(files, (".xml", ".bin"), strict=True):
            file.write((Path(folder) / "model").with_suffix(suffix).read_bytes())


def read(
    files: Sequence[BinaryIO], batch_size: int | None = None, precision: str = "fp32"
) -> tuple[Runtime, dict[str, Any]]:
    """Returns a model in OpenVINO's runtime on the CPU, and its metadata.

    Args:
        files: its graph and its weights.
        batch_size: images of every batch, for which the model is then compiled; None: batches of any size.
        precision: a key of PRECISIONS, for everything that is not quantized.

    Raises:
        UserError: the processor does not compute in this precision.
    """
    from openvino import Core

    core, name = Core(), PRECISIONS[precision]
    for file in files:
        file.seek(0)
    graph, weights = (file.read() for file in files)
    model = core.read_model(graph, weights)
    if batch_size is not None:
        shape = model.input().partial_shape
        shape[0] = batch_size
        model.reshape(shape)
    options = {"INFERENCE_PRECISION_HINT": name, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with signal_stack_kept():
        compiled = core.compile_model(model, "CPU", options)
    # The hint is only a hint: OpenVINO ignores bf16 where the processor does not have it.
    if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != name:
        raise UserError(f"precision {precision}: OpenVINO does not compute in it on this processor; use fp32")
    metadata = json.loads(model.get_rt_info([METADATA]).value) if model.has_rt_info([METADATA]) else {}
    # Copied, since the next call writes to the same memory.
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy()), metadata
