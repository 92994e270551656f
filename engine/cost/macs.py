"""Counts what a model costs: parameters, multiply-adds (MACs), activations, and the tokens left after each block.

fvcore traces the model and counts each operation with the handles in `engine.cost.ops`. For our own models
`models.formulas` computes the MACs a second time, by formula. It is an error if the two counts differ. If an operation
multiplies and has no handle, or fvcore cannot trace the model, it is not counted, and never counts as zero.

One MAC is one multiplication and one addition: two FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from engine.cost.ops import ACTIVATIONS, HANDLES, KINDS, uncounted, with_activations
from models.formulas import FORMULAS, formula_macs, token_counts
from models.interface import depends_on_image, tokens_per_block
from models.merging.budget import CountError
from models.modes import in_evaluation_mode
from models.settings import Settings

__all__ = ["Complexity", "CountError", "NotCounted", "check_agreement", "measure", "measure_or_say"]

TOLERANCE = 0.005  # of either count
DEPENDS = "the number of tokens depends on the image; tools/zeroshot.py and tools/eval.py count the mean of real images"


class NotCounted(CountError):
    """Of an operation that multiplies, or may, the MACs are not known."""


@dataclass(frozen=True)
class Complexity:
    """The cost of one image through a model in evaluation mode.

    Of a model that cannot be counted, only `params`, `tokens` and `not_counted` are known.
    """

    params: int  # a shared parameter is counted once
    by_kind: dict[str, int]  # MACs of convolutions, linear layers, attention and explicit products (matching)
    other: dict[str, int]  # fvcore's estimate for norms, pooling and resizing; not in `macs`
    ignored: dict[str, int]  # number of calls of each op that is not counted: additions, activations, sorting ...
    activations: int | None  # elements that the ops in `by_kind` output; fused attention has no T x T weights
    tokens: list[int]  # tokens after each transformer block, prefix included; empty for models without blocks
    by_module: dict[str, int]  # MACs by module path; "" is the whole model
    formula: dict[str, int] | None  # MACs by kind, computed by formula; None for other libraries' models
    not_counted: str | None = None  # why the model cannot be counted

    @property
    def macs(self) -> int | None:
        """Multiply-adds; None if they cannot be counted."""
        return None if self.not_counted else sum(self.by_kind.values())

    @property
    def gmacs(self) -> float | None:
        """Billions of multiply-adds; None if they cannot be counted."""
        return None if self.macs is None else self.macs / 1e9

    @property
    def formula_macs(self) -> int | None:
        return None if self.formula is None else sum(self.formula.values())


def measure(
    model: nn.Module, input_size: tuple[int, int, int] | None = None, settings: Settings | None = None
) -> Complexity:
    """Counts what one image costs.

    The model's mode, its weights and the random state are left unchanged. Operations that the output does not depend on
    are not counted.

    Args:
        model: a model on any device; random weights are sufficient.
        input_size: (C, H, W) of the image; None: from the model's `in_chans` and `img_size`.
        settings: the settings that the model was built from, to check the count by formula; None: no check.

    Raises:
        NotCounted: an op that multiplies has no handle, or the cost depends on the image.
        CountError: the formula disagrees by more than 0.5 % of any kind.
    """
    if depends_on_image(model):
        raise NotCounted(DEPENDS)
    images = _images(model, input_size)
    with _undisturbed(model, images.device):
        flops = _traced(model, images)
        counted = {kind: int(n) for kind, n in flops.by_operator().items()}
        elements = counted.pop(ACTIVATIONS, 0)
        ignored = dict(flops.unsupported_ops())
    by_module = {
        name: int(sum(counts[kind] for kind in KINDS)) for name, counts in flops.by_module_and_operator().items()
    }
    complexity = Complexity(
        params=sum(p.numel() for p in model.parameters()),
        by_kind={kind: counted.get(kind, 0) for kind in KINDS},
        other={name: n for name, n in counted.items() if name not in KINDS},
        ignored=ignored,
        activations=elements,
        tokens=list(tokens_per_block(model)),
        by_module=by_module,
        formula=formula_macs(settings) if settings is not None and settings.name in FORMULAS else None,
    )
    if complexity.formula is not None:
        check_agreement(complexity.by_kind, complexity.formula)
        expected = [after for _, after in token_counts(settings)]
        if complexity.tokens != expected:
            raise CountError(f"the model reports {complexity.tokens} tokens left, the formula {expected}")
    return complexity


def _traced(model: nn.Module, images: Tensor) -> FlopCountAnalysis:
    """Counts operations and activations of a model by tracing it on images (B, C, H, W), inside `_undisturbed`.

    Raises:
        NotCounted: an op that multiplies has no handle.
    """
    handles = {op: with_activations(handle) for op, handle in HANDLES.items()}
    flops = FlopCountAnalysis(model, images).set_op_handle(**handles)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    flops.total()  # the analysis is computed when its results are first used
    if missed := uncounted(ignored := flops.unsupported_ops()):
        raise NotCounted(", ".join(f"{op} ({ignored[op]} times)" for op in missed))
    return flops


def traced_macs(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Counts the MACs by kind of these images (B, C, H, W), on the model's device, which may decide what they cost.

    Raises:
        NotCounted: an op that multiplies has no handle.
    """
    with _undisturbed(model, images.device):
        counted = _traced(model, images).by_operator()
        return {kind: int(counted.get(kind, 0)) for kind in KINDS}


def measure_or_say(model: nn.Module, settings: Settings | None = None) -> Complexity:
    """Counts what one image costs, as `measure` does; a model of another library that cannot be counted says why.

    Raises:
        CountError: a model of our own is not counted, or its formula disagrees.
    """
    try:
        return measure(model, settings=settings)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tracing runs the model's own code, which raises anything
        ours = settings is not None and settings.name in FORMULAS and not depends_on_image(model)
        if ours or "can't allocate memory" in str(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = reason if isinstance(error, CountError) else f"fvcore cannot trace it ({reason})"
        params, tokens = sum(p.numel() for p in model.parameters()), list(tokens_per_block(model))
        return Complexity(params, {}, {}, {}, None, tokens, {}, None, not_counted=reason)


def check_agreement(counted: Mapping[str, int], formula: Mapping[str, int]) -> None:
    """Raises CountError if two counts of MACs by kind differ by more than 0.5 % in any kind.

    Each kind is compared by itself, so that an error in a small part does not disappear in a large total.
    """
    pairs = {kind: (counted.get(kind, 0), formula.get(kind, 0)) for kind in KINDS}
    if all(abs(a - b) <= TOLERANCE * min(a, b) for a, b in pairs.values()):
        return
    total, expected = sum(counted.values()), sum(formula.values())
    worst = max(KINDS, key=lambda kind: abs(pairs[kind][0] - pairs[kind][1]))
    traced, written = pairs[worst]
    raise CountError(
        f"fvcore counts {total / 1e9:.6g} GMACs, the formula {expected / 1e9:.6g}; they differ most in {worst}: "
        f"{traced / 1e9:.6g} against {written / 1e9:.6g} GMACs"
    )


def _images(model: nn.Module, input_size: tuple[int, int, int] | None) -> Tensor:
    if input_size is None:
        size = model.img_size
        input_size = (model.in_chans, *(size if isinstance(size, tuple) else (size, size)))
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(1, *input_size, device=first.device, dtype=first.dtype)


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Disables training mode, gradients, autocast and fused encoder layers, and restores them at the end."""
    hooks = {module: (set(module._forward_pre_hooks), set(module._forward_hooks)) for module in model.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # otherwise a whole layer appears as one op
    devices = [device] if device.type == "cuda" else []
    try:
        without_autocast = torch.autocast(device.type, enabled=False)
        with torch.random.fork_rng(devices), torch.no_grad(), without_autocast, in_evaluation_mode(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, known in hooks.items():
            for now, before in zip((module._forward_pre_hooks, module._forward_hooks), known, strict=True):
                for key in set(now) - before:  # fvcore leaves its hooks behind if the forward raises
                    del now[key]
