"""What happens inside a model's attention blocks: attention with gradients, and which tokens each block merged.

Everything that an explanation needs is read from the model as it runs, for our own models and wrapped ones alike: a
block computes its attention by `scaled_dot_product_attention` and then calls its merge layer, also where it merges
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..attention import split_heads
from ..merging.adaptive import in_order, padded
from ..merging.contract import Adaptive, Answer, Assignment, Merger, Removal
from ..merging.layer import Attended, MergeLayer
from ..merging.tokens import Tokens, apply_answer, unmerge
from ..merging.wrapping import unwrap, wrap
from ..settings import UserError


class Block(NamedTuple):
    """One block as it ran.

    T tokens enter it and S leave it; P of them are prefix tokens, such as the class token; N input patches.
    """

    attention: Tensor  # (B, heads, T, T): rows sum to one; a part of the graph, so that it has a gradient
    source: Tensor  # (B, T, C): the attention's input; a part of the graph
    merged: Tensor  # (B, S, C): what the merge layer returned; a part of the graph
    before: Tokens  # the state of the T tokens
    after: Tokens  # the state of the S tokens
    answer: Answer | None  # what the method answered; None where nothing was merged
    prefix: int  # P
    sides: tuple[int, int]  # height and width of the images, pixels

    def carry(self, x: Tensor) -> Tensor:
        """What the block's merging makes of values x (B, T, C) of its tokens: their means or mixtures, (B, S, C).

        Tokens whose norm is kept are longer than their means; values such as relevance are not vectors with a norm.
        """
        if self.answer is None:
            return x
        answer = self.answer._replace(keep_norm=False) if isinstance(self.answer, Assignment) else self.answer
        return apply_answer(x, self.before, answer, self.prefix)[0]

    def patches(self, x: Tensor) -> Tensor:
        """Values x (B, T, C) of the tokens that enter the block -> values (B, N, C) of the input patches."""
        return unmerge(x, self.before, self.prefix)

    def on_grid(self, values: Tensor) -> Tensor:
        """Values (B, N) of the input patches -> (B, rows, columns).

        A model for images of any size does not know its grid; it then follows from the shape of the images.

        Raises:
            UserError: the patches form no such grid, as where some were dropped.
        """
        count, (height, width) = values.shape[1], self.sides
        rows, columns = self.before.input_grid or (round((count * height / width) ** 0.5), 0)
        if count % rows or (columns and rows * columns != count):
            raise UserError(f"{count} patches of images of {height} x {width} pixels form no grid")
        return rearrange(values, "b (h w) -> b h w", h=rows)


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Block]]:
    """Records every block of a model while it runs: the list is filled by a forward pass in this context.

    A ViT of another library that is not wrapped is wrapped meanwhile, without merging.

    Raises:
        UserError: a model without attention, or one whose attention cannot be followed, with the reason.
    """
    with ExitStack() as stack:
        layers = _merge_layers(model)
        if not layers:
            try:
                wrap(model)
            except UserError as error:
                raise UserError(f"its attention cannot be followed: {error}") from None
            stack.callback(unwrap, model)
            layers = _merge_layers(model)
        blocks: list[Block] = []
        attention: list[Tensor] = []  # of the block that is running
        stack.enter_context(VisibleAttention(attention.append))
        sides: list[tuple[int, int]] = []

        def entered(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sides[:] = [(inputs[0].shape[-2], inputs[0].shape[-1])]

        stack.callback(model.register_forward_pre_hook(entered).remove)
        for layer in layers:
            answers: list[Answer] = []
            stack.callback(setattr, layer, "merger", layer.merger)
            layer.merger = _remembering(layer.merger, answers.append)
            hook = layer.register_forward_hook(_after(layer, blocks, attention, answers, sides))
            stack.callback(hook.remove)
        yield blocks


def score(logits: Tensor, target: Tensor) -> Tensor:
    """The sum of the images' logits of their targets: images do not depend on each other."""
    return logits.gather(1, target.unsqueeze(1)).sum()


def _merge_layers(model: nn.Module) -> list[MergeLayer]:
    return [module for module in model.modules() if isinstance(module, MergeLayer)]


def _remembering(merger: Merger, remember: Callable[[Answer], None]) -> Merger:
    """The same method, whose answers are remembered."""

    def remembering(method: Callable[..., Answer]) -> Callable[..., Answer]:
        @wraps(method)  # its options are read from its signature
        def assign(*args: Any, **options: Any) -> Answer:
            found = method(*args, **options)
            remember(found)
            return found

        return assign

    adaptive = merger.adaptive and remembering(merger.adaptive)
    return replace(merger, assign=remembering(merger.assign), adaptive=adaptive)


def _after(
    layer: MergeLayer, blocks: list[Block], attention: list[Tensor], answers: list[Answer], sides: list[tuple[int, int]]
) -> Callable[..., None]:
    """A hook that adds a block to the list when its merge layer has been called."""

    def hook(
        module: nn.Module, inputs: tuple[Tensor, Tokens, Removal, Attended], output: tuple[Tensor, Tokens]
    ) -> None:
        _, before, amount, attended = inputs
        if len(attention) != 1:
            raise UserError(
                f"block {len(blocks) + 1}: computes attention {len(attention)} times by "
                "scaled_dot_product_attention, and can be followed if it does so once"
            )
        x, after = output
        answer = answers[0] if answers else None
        if isinstance(amount, Adaptive):  # each image has an answer of its own
            assigned = [in_order(answer) for answer in answers if isinstance(answer, Assignment)]
            answer = padded(assigned, before.size.shape[1] - layer.prefix)
        answers.clear()
        blocks.append(Block(attention.pop(), attended.source, x, before, after, answer, layer.prefix, sides[0]))

    return hook


class VisibleAttention(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` by its formula, so that the attention matrix is a part of the graph.

    Args:
        see: called with each attention matrix, (B, heads, T, T).
    """

    def __init__(self, see: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:  # its own call of the function below would not come here
            out, attention = _multi_head(func, *args, **(kwargs or {}))
            self._see(attention)
            return out, None
        if func is F.scaled_dot_product_attention:
            out, attention = _attention(*args, **(kwargs or {}))
            self._see(attention)
            return out
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d) + mask) v, and the softmax. Arguments as of `scaled_dot_product_attention`."""
    if is_causal or enable_gqa:
        raise UserError("causal or grouped attention: explanations follow attention among all tokens")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    attention = scores.softmax(dim=-1)
    return F.dropout(attention, dropout_p) @ value, attention


def _multi_head(func: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`F.multi_head_attention_forward` of tokens (T, B, C) among themselves, and the attention matrix."""
    given = signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    x, heads = a["query"], a["num_heads"]
    if not (x is a["key"] is a["value"]) or a["key_padding_mask"] is not None or a["attn_mask"] is not None:
        raise UserError("nn.MultiheadAttention: explanations follow attention among all tokens of one sequence")
    q, k, v = split_heads(F.linear(x, a["in_proj_weight"], a["in_proj_bias"]).transpose(0, 1), heads)
    out, attention = _attention(q, k, v, dropout_p=a["dropout_p"] if a["training"] else 0.0)
    joined = out.permute(2, 0, 1, 3).flatten(2)  # (T, B, C)
    return F.linear(joined, a["out_proj_weight"], a["out_proj_bias"]), attention
