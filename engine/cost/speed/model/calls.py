"""Makes a function of each variant, which runs one step of it: eager, compiled, from a file, or as a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.cost.speed.model.kernels import AUTO, choosing, seen_in
from engine.cost.speed.model.variants import PRECISIONS, RUNTIMES, Variant
from models.settings import ModelSettings

Step = Callable[[], object]
MODES = {"compiled": "default", "compiled-graph": "reduce-overhead"}  # of torch.compile, by runtime
NUMBERS = count()  # of the functions that are compiled


def images_of(settings: ModelSettings, batch_size: int, device: torch.device) -> Tensor:
    """Returns random images (B, C, H, W) for a model with these settings, always the same ones."""
    shape = (batch_size, settings.in_chans, settings.img_size, settings.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def prepare(variant: Variant, model: nn.Module, images: Tensor, file: Path | None = None) -> tuple[Step, str]:
    """Returns a function that runs one step of a variant, and the implementation of attention that it uses.

    The first call of a compiled variant compiles it.

    Args:
        variant: what to run.
        model: its model, on the device of the images. A training step changes a copy.
        images: (B, C, H, W).
        file: the model's file, for a runtime of files. It is loaded for the batch's size.
    """
    if RUNTIMES[variant.runtime].format:
        from models.export import load

        assert file is not None
        precision = {"precision": "bf16"} if variant.precision == "bf16" else {}
        run, _ = load(file, batch_size=len(images), **precision)
        return lambda: run(images), variant.runtime
    device = images.device
    model = copy.deepcopy(model).train() if variant.step == "train" else model.eval()
    with torch.set_grad_enabled(variant.step == "train"), context(variant, device):
        seen = seen_in(model, images)
    if variant.runtime == "graph":
        return _graph(variant, model, images), seen
    call = model
    if variant.runtime in MODES:
        call = torch.compile(_own_code(model), dynamic=False, mode=MODES[variant.runtime])
    if variant.step == "train":
        return _training_step(variant, model, call, images), seen

    def forward() -> None:
        with torch.inference_mode(), context(variant, device):
            call(images)

    return forward, seen


def context(variant: Variant, device: torch.device) -> AbstractContextManager:
    """Returns the context in which a variant runs: autocast, and the choice of attention, where there are any."""
    if variant.precision == "fp32" and variant.attention == AUTO:
        return nullcontext()
    return _context(variant, device)


@contextmanager
def _context(variant: Variant, device: torch.device) -> Iterator[None]:
    dtype, _ = PRECISIONS[variant.precision]
    with ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        stack.enter_context(choosing(variant.attention, device))
        yield


def _own_code(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns a function that calls a model and shares its code object with no other.

    torch.compile keeps what it compiles with the code object, and gives up on one that it has compiled eight times:
    models of one class at several batch sizes would be too many, and would slow each other down.
    """

    def call(images: Tensor) -> Tensor:
        return model(images)

    name = f"call_{next(NUMBERS)}"
    return FunctionType(call.__code__.replace(co_name=name), globals(), name, None, call.__closure__)


def _training_step(variant: Variant, model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> Step:
    """Returns a function that runs a training step. The learning rate is 0, so that every step computes the same."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.0)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        with context(variant, images.device):
            logits = call(images)
        F.cross_entropy(logits.float(), labels % logits.shape[1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _graph(variant: Variant, model: nn.Module, images: Tensor) -> Step:
    """Returns a function that replays a forward pass as a CUDA graph."""
    device = images.device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), torch.inference_mode(), context(variant, device):
        for _ in range(3):  # libraries choose their kernels before the capture
            model(images)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode(), context(variant, device):
        kept = model(images)

    # The graph reads the images where they are, and writes the output into memory of its own.
    def replay(kept: tuple[Tensor, Tensor] = (images, kept)) -> None:
        graph.replay()

    return replay
