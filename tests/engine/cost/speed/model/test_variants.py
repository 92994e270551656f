"""Every combination that exists is timed; what is impossible or has no effect is refused."""

import pytest
import torch

from engine.cost.speed.model.variants import UNMERGED, Asked, Variant, variants
from models.settings import UserError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


def test_methods_of_one_condition_stand_side_by_side():
    asked = Asked((1, 8), ("eager", "compiled"), ("fp32", "bf16"), ("fused", "math"), ("forward", "train"))
    found = variants((UNMERGED, "tome"), asked, CPU)
    assert len(found) == len(set(found)) == 2**6
    for unmerged, tome in zip(found[::2], found[1::2], strict=True):
        assert (unmerged.method, tome.method) == (UNMERGED, "tome")
        assert Variant(UNMERGED, *list(vars(tome).values())[1:]) == unmerged


def test_onnx_is_timed_once_for_each_batch_size():
    asked = Asked((1, 8), ("eager", "onnx"), ("fp32", "bf16"), ("fused", "math"), ("forward", "train"))
    found = [one for one in variants((UNMERGED,), asked, CPU) if one.runtime == "onnx"]
    assert found == [Variant(UNMERGED, "forward", size, "onnx", "fp32", "auto") for size in (1, 8)]


def test_files_are_timed_in_the_precisions_that_they_have():
    asked = Asked((1,), ("eager", "onnx", "openvino"), ("fp32", "bf16", "int8"), ("fused", "math"))
    found = [(one.runtime, one.precision, one.attention) for one in variants((UNMERGED,), asked, CPU)]
    own = [("eager", precision, attention) for precision in ("fp32", "bf16") for attention in ("fused", "math")]
    files = [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
    assert found == own + [(*one, "auto") for one in files]


def test_what_is_asked_for_twice_is_timed_once():
    assert len(variants((UNMERGED,), Asked((8, 8), ("eager", "eager")), CPU)) == 1


@pytest.mark.parametrize("runtime", ["eager", "graph"])
@pytest.mark.parametrize("attention", ["auto", "flash", "efficient", "cudnn", "math"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_cuda_has(runtime, attention, precision):
    found = variants((UNMERGED,), Asked((8,), (runtime,), (precision,), (attention,)), CUDA)
    assert found == [Variant(UNMERGED, "forward", 8, runtime, precision, attention)]


@pytest.mark.parametrize(
    ("asked", "device", "line"),
    [
        (Asked((0,)), CPU, "--batch-size 0: must be at least 1"),
        (Asked(runtimes=("eagre",)), CPU, "--runtimes eagre: unknown; did you mean eager"),
        (Asked(runtimes=("graph",)), CPU, "--runtimes graph: runs on cuda alone; use --device cuda"),
        (Asked(runtimes=("onnx",)), CUDA, "--runtimes onnx: runs on cpu alone; use --device cpu"),
        (Asked(precisions=("fp16",)), CPU, "--precision fp16: not supported on cpu; use fp32, bf16"),
        (Asked(precisions=("bf16",)), MPS, "--precision bf16: not supported on mps; use fp32"),
        (Asked(precisions=("fp8",)), CPU, "--precision fp8: unknown"),
        (Asked(attentions=("flash",)), CPU, "--attention flash: not on cpu; use auto, fused, math"),
        (Asked(attentions=("fused",)), CUDA, "--attention fused: not on cuda; use auto, flash, efficient, cudnn, math"),
        (Asked(attentions=("math",)), MPS, "--attention math: not on mps; use auto$"),
        (Asked(steps=("backward",)), CPU, "--steps backward: unknown; known: forward, train"),
        (Asked(runtimes=("onnx",), precisions=("bf16",)), CPU, "--runtimes onnx: not in bf16; add --precision fp32 or"),
        (Asked(runtimes=("onnx",), precisions=("fp32", "bf16")), CPU, "--precision bf16: not in these runtimes; add"),
        (Asked(precisions=("fp32", "int8")), CPU, "--precision int8: not in these .* --runtimes onnx or openvino, or"),
        (Asked(runtimes=("eager", "onnx"), precisions=("int8",)), CPU, "--runtimes eager: not in int8; add"),
        (Asked(runtimes=("openvino",), steps=("train",)), CPU, "--runtimes openvino: does not train"),
        (Asked(runtimes=("onnx",), attentions=("math",)), CPU, "--attention math: has no effect on onnx"),
        (Asked(runtimes=("eager", "onnx"), precisions=("bf16",)), CPU, "--runtimes onnx: not in bf16; add"),
        (Asked(runtimes=("onnx",), steps=("train",)), CPU, "--runtimes onnx: does not train"),
        (Asked(runtimes=("eager", "onnx"), steps=("train",)), CPU, "--runtimes onnx: does not train"),
        (Asked(runtimes=("graph",), steps=("train",)), CUDA, "--runtimes graph: does not train"),
    ],
)
def test_refused(asked, device, line):
    with pytest.raises(UserError, match=line):
        variants((UNMERGED,), asked, device)
