"""Files for OpenVINO give the model's numbers; int8 files nearly its predictions. Operators: test_onnx.py."""

from __future__ import annotations

import sys

import pytest
import torch

from models import export
from models.export import close, convert_onnx, export_model, load
from models.export.agreement import change
from models.export.signal_stack import signal_stack, signal_stack_kept
from models.settings import UserError
from tests.models.export.test_export import photographs, small

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(torch.__version__ < export.LEAST_TORCH, reason=f"needs torch {export.LEAST_TORCH}")
FP32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A merging ViT, and a folder with its ONNX file, and the same for OpenVINO."""
    folder, model, said = tmp_path_factory.mktemp("files"), small("vit", "tome"), {"classes": ["a", "ü", '<"&']}
    export_model(model, "onnx", folder / "model.onnx", photographs(8), said)
    convert_onnx(folder / "model.onnx", folder / "model.xml")
    return model, folder


def test_a_file_gives_the_models_numbers(files):
    """For batches of any size, and loaded for one size alone; twice, since a runtime's memory is used again."""
    model, folder = files
    assert sorted(entry.name for entry in folder.iterdir()) == ["model.bin", "model.onnx", "model.xml"]
    for name in ("model.xml", "model.onnx"):
        for size in (None, 3):
            runtime, metadata = load(folder / name, batch_size=size)
            first, second = runtime(photographs(6)[:3]), runtime(photographs(6)[3:])
            assert close(torch.cat([first, second]), model(photographs(6)).detach()).all()
            assert metadata == {"classes": ["a", "ü", '<"&']}
        with pytest.raises(Exception, match=r"shape|dimension"):
            runtime(photographs(2))


def test_fp32_is_fp32_and_bf16_is_asked_for(files):
    """By itself OpenVINO computes in bf16 on a processor that has it."""
    model, folder = files
    core, name = openvino.Core(), folder / "model.xml"
    if core.compile_model(name, "CPU").get_property("INFERENCE_PRECISION_HINT").to_string() != "bf16":
        with pytest.raises(UserError, match="precision bf16: OpenVINO does not compute in it on this processor"):
            load(name, precision="bf16")
    else:
        runtime, _ = load(name, precision="bf16")
        assert not close(runtime(photographs(4)), model(photographs(4)).detach()).any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's signal stacks")
def test_signals_are_handled_where_they_were(files):
    """Whatever the order in which models are deleted: otherwise the process dies by the next signal that it handles."""
    _, folder = files
    before = signal_stack()
    first, _ = load(folder / "model.xml")
    second, _ = load(folder / "model.xml")
    del first, second
    after = signal_stack()
    assert (after.pointer, after.flags, after.size) == (before.pointer, before.flags, before.size)


def test_openvino_reads_the_onnx_file(files):
    """As the page says, where no patches are equally similar."""
    model, folder = files
    with signal_stack_kept():
        compiled = openvino.compile_model(folder / "model.onnx", "CPU", FP32)
    logits = compiled(photographs(4).numpy())[0]
    assert close(torch.from_numpy(logits.copy()), model(photographs(4)).detach()).all()


def test_a_graph_has_a_name_that_openvino_opens(tmp_path):
    with pytest.raises(UserError, match=r"m\.bin: openvino writes a graph and its weights; give .* ends in \.xml"):
        export_model(small("vit", "tome"), "openvino", tmp_path / "m.bin", photographs(2))


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_int8(name, files, tmp_path):
    """Matrices are of int8, a quarter of the bytes; predictions are nearly those of the model, logits are not."""
    nncf = pytest.importorskip("nncf")
    (model, folder), path = files, tmp_path / name
    level = nncf.common.logging.nncf_logger.level
    convert_onnx(folder / "model.onnx", path, photographs(16))
    assert nncf.common.logging.nncf_logger.level == level
    runtime, metadata = load(path)
    expected, actual = model(photographs(32)).detach(), runtime(photographs(32))
    same = (expected.argmax(1) == actual.argmax(1)).sum()
    assert same >= 26 and not close(expected, actual).any() and metadata == {"classes": ["a", "ü", '<"&']}
    if name == "model.xml":
        weights = [c.get_element_type().to_string() for c in _constants(path)]
        assert weights.count("i8") >= 8, weights


def _constants(path):
    return [op for op in openvino.Core().read_model(path).get_ops() if op.get_type_name() == "Constant"]


def test_an_int8_file_that_says_something_else_is_refused():
    model = small("vit", "tome")
    assert change(model, lambda images: 0.9 * model(images), photographs(16)).same_prediction == 16
    with pytest.raises(UserError, match=r"the int8 file gives the model's prediction for only 0 of 16 images; nothing"):
        change(model, lambda images: model(images).roll(1, dims=1), photographs(16))


def test_what_cannot_be_quantized_is_said_before_anything_is_done(tmp_path, monkeypatch):
    import sys

    model, path = small("vit", "tome"), tmp_path / "m.onnx"
    with pytest.raises(UserError, match="to = 'exported': has no int8; use onnx or openvino"):
        export_model(model, "exported", path, photographs(2), int8=photographs(2))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"to = 'onnx': .*nncf.*; pip install onnx onnxscript onnxruntime nncf"):
        export_model(model, "onnx", path, photographs(2), int8=photographs(2))
