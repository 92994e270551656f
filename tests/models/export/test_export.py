"""Models leave the framework whole: compiled, exported, as ONNX they give their own numbers, or nothing is written."""

import dataclasses
from functools import cache
from itertools import product

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.models import beit, eva
from torch import nn

from models import build_model, export
from models.export import FORMATS, close, compare, export_model, load, program_of
from models.merging import MERGERS, wrap
from models.settings import UserError
from tests.marks import mostly_slow

pytestmark = pytest.mark.precision

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
# What must leave the framework in any case, in every kind of model. test_onnx.py has every method by itself.
MODELS = [("vit", "tome"), ("vit", "topk"), ("hybrid", "tome"), ("hybrid", "grid"), ("timm", "topk"), ("timm", "pool")]
FILES = [("vit", "topk", "onnx"), ("timm", "grid", "onnx"), ("hybrid", "pool", "exported")]


def photographs(count: int) -> torch.Tensor:
    """Crops of scikit-learn's two photographs, normalised: (count, 3, 32, 32)."""
    crops = [
        torch.from_numpy(photograph.copy()).permute(2, 0, 1)[:, y : y + 128 : 4, x : x + 128 : 4]
        for photograph in load_sample_images().images
        for y in range(0, 288, 36)
        for x in range(0, 512, 64)
    ]
    return (torch.stack(crops[:: len(crops) // count][:count]).float() - 120) / 60


def small(kind: str, method: str, r: int = 4) -> nn.Module:
    """A model with weights large enough for images to differ. The first of two blocks merges: what the last one merges
    comes after the class token's last look at the patches, and a ViT's logits do not tell."""
    torch.manual_seed(0)
    r = [12 if method == "pool" else r, 0]
    if kind == "timm":
        model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    else:
        model = build_model(kind, **SMALL, merge={"method": method, "r": r})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    if kind == "timm":
        wrap(model, method=method, r=r)
    return model.eval()


@cache
def unmerged(kind: str) -> torch.Tensor:
    """The logits of a small model that merges nothing."""
    return small(kind, "none")(photographs(16))


def linear() -> nn.Module:
    """A model that is converted in no time, where what it computes is not what a test is about."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))


PAIRS = list(product(["vit", "hybrid", "timm"], [method for method in MERGERS if method != "none"]))
EXPORTED = [*MODELS, *((kind, method) for kind, method, _ in FILES)]


@pytest.mark.parametrize(
    ("kind", "method"), mostly_slow(PAIRS, [pair for pair in PAIRS if pair[0] == "vit" or pair in EXPORTED])
)
@torch.no_grad()
def test_these_models_would_tell(kind, method):
    """Logits that did not depend on what merges would agree with anything."""
    differences = (small(kind, method)(photographs(16)) - unmerged(kind)).abs().amax(dim=1)
    assert differences.median() > 5 * export.ABSOLUTE


@pytest.mark.parametrize(
    ("kind", "method"), mostly_slow(MODELS, [("vit", "tome"), ("hybrid", "grid"), ("timm", "topk")])
)
@torch.no_grad()
def test_compiles_without_a_graph_break(kind, method):
    torch._dynamo.reset()
    model, images = small(kind, method), photographs(4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=0)


def test_a_training_step_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model, images = small("vit", "tome").train(), photographs(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "method", "to"), mostly_slow(FILES, [("vit", "topk", "onnx"), ("hybrid", "pool", "exported")])
)
def test_a_file_gives_the_models_numbers_in_batches_of_any_size(kind, method, to, tmp_path):
    model, path, said = small(kind, method), tmp_path / f"model{FORMATS[to].suffixes[0]}", {"classes": ["a", "ü"]}
    found = export_model(model, to, path, photographs(8), said, batch_sizes=(1, 2, 5))
    assert found.images == found.same_prediction == 8 and found.ties == 0
    assert found.difference <= 1e-4 and found.spread > 0.01
    runtime, metadata = load(str(path))
    assert metadata == said and list(tmp_path.iterdir()) == [path]
    assert close(runtime(photographs(3)), model(photographs(3)).detach()).all()


BEITS = [
    ({"use_rel_pos_bias": True}, "tome", [0, 4, 0]),
    ({"use_rel_pos_bias": True}, "tome", [4, 0]),
    ({"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}, "grid", [0, 4]),
]


@pytest.mark.parametrize(("options", "method", "r"), mostly_slow(BEITS, BEITS[:1]))
def test_beit_s_position_bias_goes_to_onnx(options, method, r, tmp_path):
    """After the first merge, and in timm's own forward before it."""
    torch.manual_seed(0)
    model = beit.Beit(**{**SMALL, "depth": len(r)}, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    wrap(model, method=method, r=r)
    fused = [module.fused_attn for module in model.modules() if isinstance(module, beit.Attention)]
    found = export_model(model, "onnx", tmp_path / "model.onnx", photographs(8), batch_sizes=(1, 8))
    assert found.same_prediction == 8 and found.difference <= 1e-4
    assert fused == [module.fused_attn for module in model.modules() if isinstance(module, beit.Attention)]


@pytest.mark.parametrize("r", mostly_slow([[4, 0], [0, 4]], [[0, 4]]))
def test_rotary_positions_go_to_onnx(r, tmp_path):
    torch.manual_seed(0)
    model = eva.Eva(**SMALL, use_rot_pos_emb=True).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    wrap(model, method="tome", r=r)
    found = export_model(model, "onnx", tmp_path / "model.onnx", photographs(8), batch_sizes=(1, 8))
    assert found.same_prediction == 8 and found.difference <= 1e-4


def test_what_the_converter_cannot_do_is_one_line(tmp_path, monkeypatch):
    def fail(*_):
        try:
            raise ValueError("Cannot view a tensor\nWhile executing %view_2")
        except ValueError as error:
            raise torch.onnx.OnnxExporterError("pages of advice") from error

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], of_onnx=fail))
    with pytest.raises(UserError) as error:
        export_model(linear(), "onnx", tmp_path / "m.onnx", photographs(4))
    assert str(error.value) == "to = 'onnx': torch's converter failed: Cannot view a tensor; use exported"
    assert list(tmp_path.iterdir()) == []


def test_models_without_logits_are_refused(tmp_path):
    path, images = tmp_path / "m.pt2", photographs(4)
    model = small("timm", "tome")
    model.head.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="the model's logits are not finite"):
        export_model(model, "exported", path, images)
    with pytest.raises(UserError, match=r"gives \(1, 3, 3072\) for 1 image\(s\), not one row of logits for each"):
        export_model(Maps(), "exported", path, images)
    with pytest.raises(UserError, match="gives a tuple for 1 image"):
        compare(lambda images: (images, images), Maps(), images)
    assert list(tmp_path.iterdir()) == []


class Maps(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).repeat(1, 1, 3)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="to = 'torchscript': known: onnx, openvino, exported"):
        export_model(Maps(), "torchscript", tmp_path / "m.pt", photographs(2))


def test_an_operator_of_ours_is_said_to_be_needed(tmp_path):
    path = tmp_path / "model.pt2"
    found = export_model(small("vit", "facility_location"), "exported", path, photographs(8), {"mean": [0.5]}, (1, 4))
    assert found.operators == ("hybridmerge::select",) and found.difference <= 1e-4
    runtime, metadata = load(path)
    assert metadata == {"mean": [0.5]} and runtime(photographs(5)).shape == (5, 5)


def test_a_wrong_file_leaves_nothing_behind(tmp_path, monkeypatch):
    """A converter that is a training behind: well-formed, of the right shape, and wrong."""
    model, other = linear(), linear()

    def stale(program, files, metadata):
        form.save(program_of(other, (3, 32, 32)), files, metadata)

    form = FORMATS["exported"]
    monkeypatch.setitem(FORMATS, "exported", dataclasses.replace(form, save=stale))
    path = tmp_path / "model.pt2"
    with pytest.raises(UserError, match=r"does not give the model's logits: 16 of 16 images differ .* nothing was"):
        export_model(model, "exported", path, photographs(16))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"an older file")
    with pytest.raises(UserError, match="16 of 16"):
        export_model(model, "exported", path, photographs(16))
    assert path.read_bytes() == b"an older file" and list(tmp_path.iterdir()) == [path]


def test_images_that_show_nothing_are_no_check():
    model = small("vit", "tome")
    with pytest.raises(UserError, match="cannot show"):
        compare(model, model, torch.zeros(4, 3, 32, 32))


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime .*; pip install onnx onnxscript onnxruntime"):
        export_model(small("vit", "tome"), "onnx", tmp_path / "m.onnx", photographs(2))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weightless.xml").touch()
    for name in ("model.txt", "missing.onnx", "weightless.xml"):
        with pytest.raises(UserError, match=r"not an exported file; give one of \.onnx, \.xml with \.bin, \.pt2"):
            load(tmp_path / name)


@pytest.mark.parametrize("merges", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_random_images_are_enough_for_a_check(merges, tmp_path):
    model = small("timm", "tome") if merges else linear()
    found = export_model(model, "exported", tmp_path / "m.pt2", (3, 32, 32))
    assert (found.images, found.same_prediction, found.ties) == (16, 16, 0) and found.difference <= 1e-4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((32, 32), r"a tuple; give normalised images \(n, C, H, W\), or the size \(C, H, W\) of one image"),
        ([torch.zeros(3, 32, 32)] * 3, "a list; give"),
        (torch.zeros(3, 32, 32), r"a tensor of torch\.float32 and shape \(3, 32, 32\); give"),
        (torch.zeros(0, 3, 32, 32), "a tensor of"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), r"a tensor of torch\.uint8 and"),
        ((3, 48, 32), r"does not take images of shape \(3, 48, 32\) \(C, H, W\): Input height \(48\)"),
        ((1, 32, 32), r"does not take images of shape \(1, 32, 32\)"),
    ],
)
def test_images_that_the_model_does_not_take_are_refused_before_the_conversion(images, message, tmp_path):
    with pytest.raises(UserError, match=f"images: .*{message}"):
        export_model(small("timm", "tome"), "exported", tmp_path / "m.pt2", images)
    assert list(tmp_path.iterdir()) == []


def test_images_of_any_floating_type_serve_as_a_check(tmp_path):
    found = export_model(linear(), "exported", tmp_path / "m.pt2", photographs(4).double())
    assert found.same_prediction == 4


@pytest.mark.slow
def test_a_model_inside_peft_s_is_exported_with_its_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(small("timm", "tome"), adapters).eval()
    found = export_model(model, "exported", tmp_path / "m.pt2", photographs(4))
    assert found.same_prediction == 4 and found.difference <= 1e-4
    runtime, _ = load(tmp_path / "m.pt2")
    with model.disable_adapter(), torch.no_grad():
        assert not close(runtime(photographs(4)), model(photographs(4))).any()


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "absent" / "m.pt2"
    with pytest.raises(UserError, match=r"absent/m\.pt2: cannot be written, no such file"):
        export_model(small("vit", "tome"), "exported", path, photographs(2))
