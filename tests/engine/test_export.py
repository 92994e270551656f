"""Models leave the framework whole: compiled, exported, as ONNX they give their own numbers, or nothing is written."""

import dataclasses
import json

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from engine import export
from engine.export import FORMATS, close, compare, export_model, load, program_of
from models import build_model
from models.merging import MERGERS, Assignment, Tokens, apply_assignment, unmerge, wrap
from models.settings import UserError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
FOUR = ("tome", "topk", "pool", "grid")
# Every method in our ViT; of the hybrid and a wrapped model, what must leave the framework in any case.
COMPILED = [("vit", m) for m in MERGERS] + [(kind, m) for kind in ("hybrid", "timm") for m in FOUR]
# ONNX goes through the same export: what it covers is not exported twice.
EXPORTED = [("vit", m) for m in MERGERS if m not in (*FOUR, "none")] + [("hybrid", "grid"), ("timm", "topk")]


def photographs(count: int) -> torch.Tensor:
    """Crops of scikit-learn's two photographs, normalised: (count, 3, 32, 32)."""
    crops = [
        torch.from_numpy(photograph.copy()).permute(2, 0, 1)[:, y : y + 128 : 4, x : x + 128 : 4]
        for photograph in load_sample_images().images
        for y in range(0, 288, 36)
        for x in range(0, 512, 64)
    ]
    return (torch.stack(crops[:: len(crops) // count][:count]).float() - 120) / 60


def small(kind: str, method: str, r: int = 4, depth: int = 1) -> nn.Module:
    """A model of a block or two, for compilers are slow, with weights large enough for images to differ."""
    torch.manual_seed(0)
    r = 12 if method == "pool" else r
    if kind == "timm":
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=2,
            num_classes=5,
        )  # fmt: skip
    else:
        model = build_model(kind, **SMALL, depth=depth, merge={"method": method, "r": r})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3 if "head" in name or "fc" in name else 0.1)
    if kind == "timm":
        wrap(model, method=method, r=r)
    return model.eval()


@pytest.mark.parametrize(("kind", "method"), COMPILED)
@torch.no_grad()
def test_compiles_without_a_graph_break(kind, method):
    torch._dynamo.reset()
    model, images = small(kind, method), photographs(4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["hybrid"])
def test_a_training_step_compiles_without_a_graph_break(kind):
    torch._dynamo.reset()
    model, images = small(kind, "tome").train(), photographs(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "method"), EXPORTED)
def test_exports_and_takes_batches_of_any_size(kind, method):
    model, images = small(kind, method), photographs(8)
    program = program_of(model, images.shape[1:]).module()
    found = compare(model, program, images, batch_sizes=(1, 2, 5))
    assert found.difference <= 1e-4 and found.same_prediction == 8


@pytest.mark.parametrize(("kind", "method"), [("vit", m) for m in FOUR] + [("hybrid", "tome"), ("timm", "tome")])
def test_onnx_gives_the_models_numbers(kind, method, tmp_path):
    model, path = small(kind, method, depth=2 if method == "tome" else 1), tmp_path / "model.onnx"
    found = export_model(model, "onnx", path, photographs(16), {"method": method, "classes": ["a", "ü"]}, (1, 5))
    assert found.images == 16 and found.difference <= 1e-4 and found.spread > 0.01
    runtime, metadata = load(path)
    assert metadata == {"method": method, "classes": ["a", "ü"]}
    assert close(runtime(photographs(3)), model(photographs(3)).detach()).all()


def test_a_method_without_an_operator_is_refused_by_name(tmp_path):
    model = small("vit", "facility_location")
    with pytest.raises(UserError, match=r"'facility_location'.*hybridmerge\.select.*--to exported"):
        export_model(model, "onnx", tmp_path / "model.onnx", photographs(4), {"method": "facility_location"})
    assert list(tmp_path.iterdir()) == []


def test_an_exported_program_is_read_back_with_its_metadata(tmp_path):
    model, path = small("hybrid", "facility_location"), tmp_path / "model.pt2"
    found = export_model(model, "exported", path, photographs(8), {"mean": [0.5]}, (1, 4))
    assert found.operators == ("hybridmerge::select",) and found.difference <= 1e-4
    runtime, metadata = load(path)
    assert metadata == {"mean": [0.5]} and runtime(photographs(5)).shape == (5, 5)


class Merge(nn.Module):
    """Merging and unmerging alone, many tokens into few: a scatter that forgets to add cannot hide."""

    def forward(self, x, index):
        x, tokens = apply_assignment(x, Tokens(index, torch.ones(x.shape[:2])), Assignment(index, 3), prefix=0)
        return unmerge(x, tokens)


def test_duplicates_are_added_up_in_onnx(tmp_path):
    import onnxruntime

    x = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 3, (2, 40), generator=torch.Generator().manual_seed(1))
    program = torch.export.export(Merge(), (x, index))
    onnx = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["x", "index"])
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x.numpy(), "index": index.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), Merge()(x, index))


def upside_down(program, file, metadata):
    """A converter that sorts the wrong way round: the least similar patches merge."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.sort.stable:
            node.kwargs = {**node.kwargs, "descending": not node.kwargs.get("descending", False)}
    program.graph_module.recompile()
    torch.export.save(program, file, extra_files={export.METADATA: json.dumps(metadata)})


def forgetful(program, file, metadata):
    """A converter whose scatter overwrites instead of adding."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.index_add.default:
            base, dim, index, source = node.args
            with program.graph.inserting_before(node):
                copy = program.graph.call_function(torch.ops.aten.index_copy.default, (base, dim, index, source))
            copy.meta = node.meta
            node.replace_all_uses_with(copy)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    torch.export.save(program, file, extra_files={export.METADATA: json.dumps(metadata)})


@pytest.mark.parametrize("sabotage", [upside_down, forgetful])
def test_a_converter_that_gives_wrong_numbers_is_caught_and_leaves_nothing(sabotage, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "exported", dataclasses.replace(FORMATS["exported"], write=sabotage))
    with pytest.raises(UserError, match="does not give the model's logits: .* of 16 images"):
        export_model(small("vit", "tome", r=6), "exported", tmp_path / "model.pt2", photographs(16))
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_the_check_fails(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"an older file")
    monkeypatch.setitem(FORMATS, "exported", dataclasses.replace(FORMATS["exported"], write=forgetful))
    with pytest.raises(UserError):
        export_model(small("vit", "tome", r=6), "exported", path, photographs(16))
    assert path.read_bytes() == b"an older file" and len(list(tmp_path.iterdir())) == 1


def test_another_r_is_not_mistaken_for_rounding():
    model, other, images = small("vit", "tome", r=4), small("vit", "tome", r=5), photographs(16)
    other.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="16 of 16 images|15 of 16 images"):
        compare(model, other, images)


def test_images_that_show_nothing_are_no_check():
    model = small("vit", "tome")
    with pytest.raises(UserError, match="cannot show"):
        compare(model, model, torch.zeros(4, 3, 32, 32))


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime .*; pip install -e '\.\[export\]'"):
        export_model(small("vit", "tome"), "onnx", tmp_path / "m.onnx", photographs(2))


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("model.txt", "missing.onnx"):
        with pytest.raises(UserError, match=r"\.onnx or \.pt2"):
            load(tmp_path / name)
