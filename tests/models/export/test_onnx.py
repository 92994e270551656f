"""ONNX files, operator by operator: sums over duplicates, ties, every method alone; and a wrong file is found out."""

from __future__ import annotations

import io
from importlib.util import find_spec
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models import export
from models.export import FORMATS, compare
from models.export.agreement import DRAWS
from models.export.formats import conversion_errors, translations
from models.export.openvino import from_onnx
from models.merging import MERGERS, Assignment, Tokens, apply_assignment, merge, unmerge
from models.settings import UserError
from tests.marks import mostly_slow
from tests.models.export.test_export import photographs, small

pytestmark = pytest.mark.skipif(torch.__version__ < export.LEAST_TORCH, reason=f"needs torch {export.LEAST_TORCH}")


Inputs = tuple[Tensor, ...]


def onnx_of(program: torch.export.ExportedProgram, inputs: Inputs) -> onnx.ModelProto:
    """A program after the same conversion as a whole model; its inputs are called input_0, input_1 ..."""
    names = [f"input_{i}" for i in range(len(inputs))]
    with export.quiet():
        return torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=names, custom_translation_table=translations()
        ).model_proto


def run_onnxruntime(graph: onnx.ModelProto, inputs: Inputs) -> list[Tensor]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {f"input_{i}": value.numpy() for i, value in enumerate(inputs)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


def run_openvino(graph: onnx.ModelProto, inputs: Inputs) -> list[Tensor]:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(from_onnx(graph), "CPU", options)
    names = {name for port in compiled.inputs for name in port.get_names()}  # without those that nothing uses
    given = {f"input_{i}": value.numpy() for i, value in enumerate(inputs) if f"input_{i}" in names}
    return [torch.from_numpy(output.copy()) for output in compiled(given).values()]


RUNTIMES = [run_onnxruntime, *([run_openvino] if find_spec("openvino") else [])]  # an extra


class MergeAndBack(nn.Module):
    """Tokens by a given assignment with weights, and back."""

    def forward(self, x: Tensor, size: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        tokens = Tokens(torch.arange(x.shape[1]).expand(x.shape[:2]), size)
        x, tokens = apply_assignment(x, tokens, Assignment(index, 3, weight), prefix=1)
        return x, tokens.size, unmerge(x, tokens)


def test_merging_many_into_few_adds_all_of_them_up():
    """The classic failure: a scatter without reduction="add" keeps the last of the duplicates, and says nothing."""
    rng = np.random.default_rng(0)
    x, size = rng.standard_normal((2, 31, 4)).astype(np.float32), rng.integers(1, 9, (2, 31)).astype(np.float32)
    index, weight = rng.integers(0, 3, (2, 30)), rng.random((2, 30)).astype(np.float32)
    inputs = [torch.from_numpy(part) for part in (x, size, index, weight)]
    graph = onnx_of(torch.export.export(MergeAndBack(), tuple(inputs)), tuple(inputs))
    for image, run in product(range(2), RUNTIMES):
        mean, sizes, back = run(graph, tuple(inputs))
        assert torch.equal(mean[image, 0], inputs[0][image, 0]) and torch.equal(back[image, 0], mean[image, 0])
        for token in range(3):
            own = [patch for patch in range(30) if index[image, patch] == token]
            weights = [float(size[image, 1 + patch] * weight[image, patch]) for patch in own]
            expected = sum(w * x[image, 1 + patch] for w, patch in zip(weights, own)) / sum(weights)
            np.testing.assert_allclose(mean[image, 1 + token], expected, atol=1e-5)
            assert sizes[image, 1 + token] == sum(size[image, 1 + patch] for patch in own)
            assert all(torch.equal(back[image, 1 + patch], mean[image, 1 + token]) for patch in own)


class Orders(nn.Module):
    """Everything that methods put in order."""

    def forward(self, x: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        return (
            x.argsort(dim=-1, descending=True, stable=True),
            x.argsort(dim=1, stable=True),
            x.max(dim=-1).indices,
            x.argmax(dim=1),
            x.argmin(dim=-1),
            numbers.sort().values,
            numbers.argsort(stable=True),
            torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"),
        )


def test_equal_values_keep_their_order():
    """Of 40 values in each row only four differ: ties everywhere, and the lower position goes first. OpenVINO's own
    reading of the file does not keep to that."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (2, 5, 40), generator=generator).float()
    numbers = torch.randint(0, 9, (2, 40), generator=generator)
    graph = onnx_of(torch.export.export(Orders(), (x, numbers)), (x, numbers))
    *expected, between = Orders()(x, numbers)
    for run in RUNTIMES:
        *orders, distance = run(graph, (x, numbers))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(orders, expected, strict=True))
        torch.testing.assert_close(distance, between)


class OneMerge(nn.Module):
    """A method in the middle of a network: patches of many sizes, on a grid."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.merger, self.r = MERGERS[method], {"pool": 14}.get(method, 4)
        torch.manual_seed(0)
        self.pooling = None if self.merger.pooling is None else self.merger.pooling(8, 20 - self.r)

    def forward(self, x: Tensor, index: Tensor, size: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = Tokens(index, size, (4, 5))
        x, tokens = merge(x, tokens, x, self.r, self.merger, 1, attention, 0.5, self.pooling)
        return x, tokens.size, tokens.index


def one_merge(method: str) -> tuple[OneMerge, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A method, its inputs, and what it gives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 21, 8, generator=generator)
    index = torch.arange(26).clamp(max=20).expand(2, -1)
    size = torch.ones(2, 21).index_fill(1, torch.tensor(20), 6.0)
    inputs = (x, index, size, torch.rand(2, 21, generator=generator).softmax(-1))
    model = OneMerge(method)
    return model, inputs, model(*inputs)


@pytest.mark.parametrize(
    "method", mostly_slow([n for n in MERGERS if n != "none"], ["tome", "facility_location", "grid"])
)
def test_every_method_merges_the_same_patches(method):
    """Compiled without a graph break, exported, and as ONNX, in ONNX Runtime and OpenVINO."""
    torch._dynamo.reset()
    model, inputs, (x, size, index) = one_merge(method)
    program = torch.export.export(model, inputs)
    others = [torch.compile(model, fullgraph=True, backend="eager")(*inputs), program.module()(*inputs)]
    if method == "facility_location":
        words = r"^merge.method = 'facility_location': ONNX has no operator for hybridmerge\.select; use exported"
        with pytest.raises(UserError, match=words), conversion_errors("onnx", method):
            onnx_of(program, inputs)
    else:
        graph = onnx_of(program, inputs)
        others += [run(graph, inputs) for run in RUNTIMES]
    assert x.shape[1] < 21
    for other, sizes, places in others:
        assert torch.equal(places, index)
        assert torch.equal(sizes, size) or model.pooling is not None  # whose sizes are sums of shares
        torch.testing.assert_close((other, sizes), (x, size), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def converted():
    """A ViT in which no position tells patches apart, and its ONNX file."""
    model, file = small("vit", "tome"), io.BytesIO()
    with torch.no_grad():
        model.pos_embed.zero_()
    with export.quiet():
        FORMATS["onnx"].save(FORMATS["onnx"].graph_of(export.program_of(model, (3, 32, 32))), [file], {})
    return model, file.getvalue()


def runtime_of(graph: onnx.ModelProto) -> export.Runtime:
    return FORMATS["onnx"].read([io.BytesIO(graph.SerializeToString())])[0]


def turned_around(graph: onnx.ModelProto) -> int:
    """TopK takes the least similar."""
    for node in (nodes := [node for node in graph.graph.node if node.op_type == "TopK"]):
        del node.attribute[[a.name for a in node.attribute].index("largest")]
        node.attribute.append(onnx.helper.make_attribute("largest", 0))
    return len(nodes)


def forgetful(graph: onnx.ModelProto) -> int:
    """Scatters keep the last of the duplicates."""
    changed = 0
    for node in graph.graph.node:
        names = [a.name for a in node.attribute]
        if node.op_type.startswith("Scatter") and "reduction" in names:
            changed += node.attribute[names.index("reduction")].s == b"add"
            del node.attribute[names.index("reduction")]
    return changed


def unlike(graph: onnx.ModelProto) -> int:
    """Each source's partner is the destination that is least like it."""
    for node in (nodes := [node for node in graph.graph.node if node.op_type == "ArgMax"]):
        node.op_type = "ArgMin"
    return len(nodes)


@pytest.mark.parametrize("sabotage", [turned_around, forgetful, unlike])
def test_a_file_with_an_operator_swapped_is_found_out(converted, sabotage):
    model, file = converted
    compare(model, runtime_of(onnx.load_from_string(file)), photographs(16))
    graph = onnx.load_from_string(file)
    assert sabotage(graph) > 0
    with pytest.raises(UserError, match=r"the file does not give the model's logits: 1[0-6] of 16 images"):
        compare(model, runtime_of(graph), photographs(16))


def test_another_r_is_not_mistaken_for_rounding():
    model, other = small("vit", "tome"), small("vit", "tome", r=5)
    with pytest.raises(UserError, match=r"1[0-6] of 16 images differ"):
        compare(model, other, photographs(16))


def test_equal_patches_merge_to_the_same_logits(converted):
    """All of an image, or half of one, is of one colour: whichever of the equal patches merge, the result is one."""
    model, file = converted
    flat = torch.tensor([0.0, 0.3, -1.7]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    half = photographs(3)
    half[..., :16] = 1.0
    assert compare(model, runtime_of(onnx.load_from_string(file)), torch.cat([flat, half])).ties == 0


class Edge(nn.Module):
    """Two answers, and an edge between them, as two patches of equal merit are one."""

    def __init__(self, edge: float = 0.0) -> None:
        super().__init__()
        self.edge, self.images = edge, 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        side = (images.mean(dim=(1, 2, 3)) > self.edge).float()
        return torch.stack([side, 1 - side], dim=1)


def edge_images(at_the_edge: int) -> Tensor:
    """16 images of two kinds, far from the edge; but of so many the mean is 1e-8."""
    images = torch.full((16, 1, 8, 8), 0.5)
    images[8:] *= -1
    images[:at_the_edge] = 1e-8
    return images


def test_an_image_at_a_tie_is_told_from_a_wrong_file():
    model, rounded = Edge(), Edge(2e-8)
    found = compare(model, rounded, edge_images(2))
    assert found.ties == 2 and found.difference == 0 and found.same_prediction == 14
    with pytest.raises(UserError, match="1 of 16 images differ"):  # not at an edge of the model's
        compare(
            model,
            lambda images: model(images) + (images.amax(dim=(1, 2, 3), keepdim=True)[..., 0, 0] == 1e-8),
            edge_images(1),
        )


def test_ties_do_not_explain_everything():
    model = Edge()
    with pytest.raises(UserError, match="3 of 16 images differ"):
        compare(model, Edge(2e-8), edge_images(3), batch_sizes=(4,))
    assert model.images == 16 < DRAWS  # so many at once are not even tried


def test_nan_is_not_close():
    with pytest.raises(UserError, match="16 of 16 images differ"):
        compare(Edge(), lambda images: torch.full((len(images), 2), torch.nan), edge_images(0))
