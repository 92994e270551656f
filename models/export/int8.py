"""Post-training quantization to int8, by NNCF, OpenVINO's tool for it."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor

from .signal_stack import signal_stack_kept

MOST_IMAGES = 300  # NNCF's default; it looks at no more


def quantized(graph: Any, images: Tensor) -> Any:
    """Returns a graph whose multiplications of matrices are in int8 where NNCF judges that they can be.

    Ranges of activations are those on the images given; weights need none. NNCF's settings for Transformers are used.
    What the merging methods compare is quantized too, so other tokens may merge.

    Args:
        graph: onnx.ModelProto or openvino.Model, with one input.
        images: normalised images to calibrate on, (n, C, H, W), of the kind that the model is for.
    """
    import nncf  # an extra

    before = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    try:
        images = images[:MOST_IMAGES]
        data = nncf.Dataset([image.numpy() for image in images.split(1)], _inputs_of(graph))
        with redirect_stdout(io.StringIO()), signal_stack_kept():  # NNCF shows bars of progress, and uses OpenVINO
            return nncf.quantize(graph, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    finally:
        nncf.set_log_level(before)


def _inputs_of(graph: Any) -> Any:
    """Returns the function that makes of images what NNCF feeds the graph: ONNX's inputs have names."""
    return (lambda images: {"images": images}) if hasattr(graph, "opset_import") else (lambda images: images)
