"""What a model costs: parameters, multiply-adds, activations, tokens left. Counted twice, or refused.

fvcore traces the model and counts op by op, with the handles of `engine.cost.ops`; `models.formulas` says by
formula what our own models should come to. An op that multiplies and has no handle is an error, and so is a
disagreement.

One MAC is one multiplication and one addition: two FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from engine.cost.ops import ACTIVATIONS, HANDLES, KINDS, uncounted
from models.formulas import FORMULAS, formula_macs, token_counts
from models.interface import tokens_per_block
from models.merging.budget import CountError
from models.settings import Settings

__all__ = ["Complexity", "CountError", "check_agreement", "measure"]

TOLERANCE = 0.005  # of either count


@dataclass(frozen=True)
class Complexity:
    """The cost of one image through a model in evaluation mode."""

    params: int  # a shared parameter once
    by_kind: dict[str, int]  # MACs of convolutions, linear layers, attention and explicit products (matching)
    other: dict[str, int]  # fvcore's estimate for norms, pooling and resizing; not in `macs`
    ignored: dict[str, int]  # how often each op occurs that nobody counts: additions, activation functions, sorting ...
    activations: int  # elements put out by the ops in `by_kind`; fused attention never puts out its T x T weights
    tokens: list[int]  # tokens that leave each transformer block, prefix included; empty where a model does not say
    by_module: dict[str, int]  # MACs by module path; "" is the whole
    formula: dict[str, int] | None  # MACs by kind again, by formula; None for models that are not ours

    @property
    def macs(self) -> int:
        return sum(self.by_kind.values())

    @property
    def formula_macs(self) -> int | None:
        return None if self.formula is None else sum(self.formula.values())


def measure(
    model: nn.Module, input_size: tuple[int, int, int] | None = None, settings: Settings | None = None
) -> Complexity:
    """Counts what one image costs.

    Training mode, weights and random state are left as they were. The tracer leaves out what no result depends on.

    Args:
        model: on any device; built at random will do.
        input_size: (C, H, W) of the image; None asks the model's `in_chans` and `img_size`.
        settings: the options that the model was built from, to check the count by formula.

    Raises:
        CountError: an op that multiplies is not counted, or the formula disagrees by more than 0.5 % of any kind.
    """
    images = _images(model, input_size)
    with _undisturbed(model, images.device):
        flops = FlopCountAnalysis(model, images).set_op_handle(**HANDLES)
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = {kind: int(n) for kind, n in flops.by_operator().items()}
        activations = ActivationCountAnalysis(model, images).set_op_handle(**ACTIVATIONS)
        activations.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        elements = int(activations.total())

    ignored = dict(flops.unsupported_ops())
    if missed := uncounted(ignored):
        listed = ", ".join(f"{op} ({ignored[op]} times)" for op in missed)
        raise CountError(
            f"{type(model).__name__}: not counted, though it may multiply: {listed}; see engine/cost/ops.py"
        )
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
            raise CountError(f"the model says {complexity.tokens} tokens are left, the formula {expected}")
    return complexity


def check_agreement(counted: Mapping[str, int], formula: Mapping[str, int]) -> None:
    """Raises CountError where two counts of MACs by kind differ by more than 0.5 % in any kind.

    Kinds are compared one by one, so that a small part cannot hide in a large total.
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
    """Evaluation mode without gradients, autocast and torch's fused encoder layers, all undone at the end."""
    modes = {module: module.training for module in model.modules()}
    hooks = {module: (set(module._forward_pre_hooks), set(module._forward_hooks)) for module in modes}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one op in place of a whole layer
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast(device.type, enabled=False):
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in modes.items():
            module.training = training
            for now, before in zip((module._forward_pre_hooks, module._forward_hooks), hooks[module], strict=True):
                for key in set(now) - before:  # fvcore leaves its own behind where the forward raises
                    del now[key]
