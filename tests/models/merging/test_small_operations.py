"""At batch size 1 a small operator costs more than what it computes, so their number is kept small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.merging import MERGERS, apply_assignment, initial_tokens, wrap
from models.merging.tokens import merge_context


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(call: Callable[[], Any]) -> Counter[str]:
    with torch.no_grad(), Operators() as mode:
        call()
    return mode.count


def tiny() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", embed_dim=12, num_heads=3, img_size=64, depth=4).eval()


def test_applying_an_assignment_calls_few_operators() -> None:
    x, metric, merger = torch.randn(1, 17, 12), torch.randn(1, 16, 4), MERGERS["tome"]
    tokens = initial_tokens(x)
    assignment = merger.assign(metric, 3, merge_context(tokens, merger, 1))
    count = operators(lambda: apply_assignment(x, tokens, assignment, 1))
    assert sum(count.values()) <= 15, count


def test_a_wrapped_model_that_merges_nothing_calls_the_operators_of_the_model() -> None:
    images, model = torch.randn(1, 3, 64, 64), tiny()
    own = operators(lambda: model(images))
    more = operators(lambda: wrap(model, r=0)(images)) - own
    assert sum(more.values()) <= 3, more  # the state before the first block: arange, expand, ones


def test_a_block_after_a_merge_adds_a_logarithm_and_its_shape_to_attention() -> None:
    images = torch.randn(1, 3, 64, 64)
    first = operators(lambda: wrap(tiny(), r=[3, 0, 0, 0], prop_attn=False)(images))
    biased = operators(lambda: wrap(tiny(), r=[3, 0, 0, 0])(images)) - first
    assert set(biased) == {"aten.log.default", "aten.view.default"}
    assert max(biased.values()) <= 3, biased
