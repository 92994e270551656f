"""A model leaves the framework: as an ONNX file, or as a program of torch.export.

Converters are known to translate merging without an error and to give wrong numbers: a scatter that forgets to add, a
sort that turns around, an r that froze. So a file takes its name only after it was read back, by the runtime that will
run it, and gave the model's own logits for real images.

The one honest difference: two patches can be so equally good that the last bit decides which of them merges, and the
last bit is the runtime's. An image that differs is therefore shown to the model again, under noise far below a grey
level: if the model itself then gives the file's logits, the image sits at such a tie, else the file is wrong.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from timm.models import beit
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from engine.data import Data
from engine.data.loader import eval_batches
from engine.files import replacing
from engine.runs.restore import FinishedRun
from models.interface import merging_method, model_name, removed_per_block
from models.settings import UserError, nearest

ABSOLUTE, RELATIVE = 1e-4, 1e-5  # how far a logit may be from the model's
NOISE = 1e-6  # of images whose pixels have a standard deviation near 1: a ten thousandth of a grey level
DRAWS = 64  # of the noise, for each image that differs
TIES = 1 / 8  # share of the images that ties may explain; where more differ, it is not rounding
LEAST_TORCH = "2.13"  # the oldest with which all of this was tried
BYTES = 2**31 - 2**20  # what a single ONNX file can hold, less what is not weights
METADATA = "metadata.json"

Runtime = Callable[[Tensor], Tensor]  # images (B, C, H, W) float32 -> logits (B, classes)


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    write: Callable[[ExportedProgram, BinaryIO, Mapping[str, Any]], None]
    read: Callable[[BinaryIO], tuple[Runtime, dict[str, Any]]]


@dataclass(frozen=True)
class Agreement:
    """What the check of a file found."""

    images: int
    batch_sizes: tuple[int, ...]
    difference: float  # the largest of any logit, images at ties left out
    spread: float  # how far apart the model's logits of different images are
    ties: int  # images that are right for the model under noise, not without
    same_prediction: int  # images
    operators: tuple[str, ...] = ()  # of this project, which the file calls: whoever loads it imports models.merging


def export_model(
    model: nn.Module,
    to: str,
    path: Path,
    images: Tensor,
    metadata: Mapping[str, Any] | None = None,
    batch_sizes: Sequence[int] = (1, 16),
) -> Agreement:
    """Writes a model in evaluation mode, fp32, for images of this size in batches of any size.

    Args:
        model: as it is to be used; its r is fixed in the file. It stays as it is.
        to: one of FORMATS.
        path: the file. It is there, whole and checked, or it is what it was.
        images: what to check on, normalised (n, C, H, W), of the kind that the model is for.
        metadata: goes with the file: keys, and values that JSON can say.
        batch_sizes: of the check.

    Returns:
        How well the file, read back, agrees with the model.

    Raises:
        UserError: no such format, a package is missing or torch too old, the model cannot be converted or gives no
            finite logits, the file cannot be written, or it does not give the model's numbers.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: {nearest(to, list(FORMATS))}")
    form, metadata = FORMATS[to], dict(metadata or {})
    _demand_packages(to)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if to == "onnx" and sum(p.nbytes for p in (*model.parameters(), *model.buffers())) > BYTES:
        raise UserError("--to onnx: a single ONNX file ends at 2 GB, and this model's weights do not fit; use exported")
    with replacing(Path(path)) as file:
        with _quiet(), _failures(to, metadata.get("method")):
            with _unfused(model) if to == "onnx" else nullcontext():
                program = program_of(model, images.shape[1:])
            form.write(program, file, metadata)
            file.flush()
            runtime, _ = form.read(file)
        found = compare(model, runtime, images, batch_sizes)
    return replace(found, operators=_own_operators(program))


def program_of(model: nn.Module, shape: Sequence[int]) -> ExportedProgram:
    """torch.export's program of a model in evaluation mode, for images of `shape` (C, H, W), in batches of any size."""
    with torch.no_grad():
        return torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=({0: Dim("batch", min=1)},))


@contextmanager
def _unfused(model: nn.Module) -> Iterator[None]:
    """timm's Beit without the fused kernel: ONNX's converter takes it apart into what its next line cannot view."""
    fused = [module for module in model.modules() if isinstance(module, beit.Attention) and module.fused_attn]
    try:
        for attention in fused:
            attention.fused_attn = False
        yield
    finally:
        for attention in fused:
            attention.fused_attn = True


def _own_operators(program: ExportedProgram) -> tuple[str, ...]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    return tuple(sorted(target.name() for target in targets if target.namespace == "hybridmerge"))


@torch.no_grad()
def compare(model: nn.Module, runtime: Runtime, images: Tensor, batch_sizes: Sequence[int] = (1, 16)) -> Agreement:
    """Demands that a runtime gives the model's logits, image by image, in batches of each size.

    Raises:
        UserError: it does not, or the images cannot show it.
    """
    difference, same, ties = 0.0, torch.ones(len(images), dtype=torch.bool), set()
    for size in batch_sizes:
        want = torch.cat([_logits(model, part) for part in images.split(size)])
        got = torch.cat([runtime(part) for part in images.split(size)])
        spread = (want.amax(0) - want.amin(0)).max().item()
        if not spread > 10 * ABSOLUTE:
            raise UserError(f"the model gives {len(images)} images the same logits: they cannot show what a file does")
        if got.shape != want.shape:
            raise UserError(f"the file gives {tuple(got.shape)} logits, the model {tuple(want.shape)}; nothing written")
        good = close(got, want)
        differ = (~good).nonzero().flatten().tolist()
        unexplained = differ if len(differ) > max(1, TIES * len(images)) else []
        unexplained = unexplained or [i for i in differ if not _at_a_tie(model, images[i], got[i])]
        if unexplained:
            worst = (got - want)[unexplained].abs().max().item()
            raise UserError(
                f"the file does not give the model's logits: {len(unexplained)} of {len(images)} images differ by up "
                f"to {worst:.1e}, in batches of {size}; nothing was written"
            )
        ties |= set(differ)
        difference = max(difference, (got - want)[good].abs().max().item() if good.any() else 0.0)
        same &= got.argmax(1) == want.argmax(1)
    return Agreement(len(images), tuple(batch_sizes), difference, spread, len(ties), int(same.sum()))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """What the model gives, (B, classes). Anything else nothing could be checked against."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"the model gives {shape} for {len(images)} image(s), not one row of logits for each; export a "
            "model with a pooled head"
        )
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: no file can be checked against them; mend its weights")
    return logits


def close(got: Tensor, want: Tensor) -> Tensor:
    """Which rows of logits (B, classes) are the same but for rounding, (B,) bool; NaN is not."""
    return ((got - want).abs() <= ABSOLUTE + RELATIVE * want.abs()).all(dim=1)


def _at_a_tie(model: nn.Module, image: Tensor, got: Tensor) -> bool:
    """Whether the model itself gives the logits `got` for the image (C, H, W) under some noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS // 16):
        noise = NOISE * torch.randn(16, *image.shape, generator=generator)
        if close(model(image + noise), got).any():
            return True
    return False


def sample(data: Data, most: int = 64) -> Tensor:
    """Test images, or training images where there are none, from all over the split, normalised (n, C, H, W)."""
    split = data.test if len(data.test) else data.train
    arrays = split.take(torch.linspace(0, len(split) - 1, min(most, len(split))).long())
    images, _ = next(eval_batches(arrays, len(arrays), data.mean, data.std, data.resize))
    return images


def metadata_of(run: FinishedRun, weights: str) -> dict[str, Any]:
    """What a run's file says of itself. Without merging `method` is None and `removed` empty."""
    data, model = run.data, run.settings.model
    return {
        "name": run.settings.name,
        "model": model_name(model),
        "weights": weights,
        "precision": "fp32",
        "method": merging_method(model),
        "removed": removed_per_block(run.model),
        "input": list(data.shape),
        "normalised": "(pixel / 255 - mean) / std, for each channel",
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": data.classes,
    }


def load(path: Path) -> tuple[Runtime, dict[str, Any]]:
    """An exported file as a function from images (B, C, H, W) to logits, and its metadata.

    Raises:
        UserError: no such file, or one of another kind.
    """
    path = Path(path)
    form = next((form for form in FORMATS.values() if form.suffix == path.suffix), None)
    if form is None or not path.is_file():
        raise UserError(f"{path}: not an exported file; give one that ends in .onnx or .pt2")
    with path.open("rb") as file:
        return form.read(file)


def _write_onnx(program: ExportedProgram, file: BinaryIO, metadata: Mapping[str, Any]) -> None:
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: Dim("batch", min=1)},),
        custom_translation_table=_translations(),
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


def _translations() -> dict[Callable, Callable]:
    """What torch's converter has no ONNX for.

    TopK is a stable sort: "Given two equivalent values, this operator uses the indices along the axis as a tiebreaker.
    That is, the element with the lower index will appear first" (ONNX operators, TopK, since version 11).
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


def _demand_packages(to: str) -> None:
    if torch.__version__ < LEAST_TORCH:
        raise UserError(f"--to {to}: needs torch {LEAST_TORCH} or newer, this is {torch.__version__}; upgrade torch")
    if to == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"--to onnx: {error}; pip install -e '.[export]'") from None


@contextmanager
def _failures(to: str, method: str | None) -> Iterator[None]:
    """Turns the converter's pages about what it cannot convert into a line: the operator, or the innermost cause."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        if missing := sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)))):
            said = f"--to {to}" if method is None else f"merge.method = {method!r}"
            why = f"ONNX has no operator for {', '.join(missing)}; use --to exported, or another method"
            raise UserError(f"{said}: {why}") from error
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"--to {to}: torch's converter failed: {first}; use --to exported") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's notes on its own workings, of which a user can use none. Errors stay."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
