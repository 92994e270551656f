"""One block's attention by size, and its merging: what tokens are compared by, what attention they get, the merge."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Merger
from .tokens import Tokens, merge

METRICS = ("keys", "tokens", "learned")
# Exporting needs a torch that has it.
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class MergeLayer(nn.Module):
    """Merging as a block does it, between attention and MLP.

    Args:
        merger: the method, its options bound.
        metric: "keys": the keys' mean over the heads (Bolya et al., 2023); "tokens": the tokens themselves; "learned":
            a linear head on the attention's input, as wide as one attention head (Lee and Hong, 2024). It learns from
            the soft form of a method that has one alone; with all others it stays as it is.
        prefix: how many leading tokens are protected.
        depth: the block's number over the number of blocks.
        dim: width of a token.
        head_dim: width of an attention head.
    """

    def __init__(self, merger: Merger, metric: str, prefix: int, depth: float, dim: int, head_dim: int) -> None:
        super().__init__()
        self.merger, self.metric, self.prefix, self.depth = merger, metric, prefix, depth
        self.head = nn.Linear(dim, head_dim) if metric == "learned" else None

    def forward(
        self, x: Tensor, tokens: Tokens, r: int, source: Tensor, q: Tensor, k: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tokens]:
        """Merges r patches away.

        Args:
            x: tokens after attention, (B, T, C).
            tokens: their state.
            r: how many.
            source: what attention saw, (B, T, C).
            q, k: its queries and keys, (B, heads, T, head_dim).
            bias: what it added to its scores, broadcastable to (B, heads, T, T); None: nothing.
        """
        if r == 0:
            return x, tokens
        attention = None
        if self.merger.attention is not None:
            attention = attention_received(q, k, bias, self.merger.attention)
        metric = self.compared(x, source, k)
        if self.training and self.merger.soft is not None:
            with torch.autocast(x.device.type, enabled=False):
                return self.merger.soft(x, tokens, metric, r, self.prefix)
        return merge(x, tokens, metric, r, self.merger, self.prefix, attention, self.depth)

    def compared(self, x: Tensor, source: Tensor, k: Tensor) -> Tensor:
        """What the method compares tokens by, (B, T, D) float32."""
        if self.metric == "keys":
            return k.mean(1, dtype=torch.float32)
        return (x if self.metric == "tokens" else self.head(source.detach())).float()


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Fused attention: q, k, v (B, heads, T, head_dim), bias broadcastable to (B, heads, T, T) -> (B, T, heads x dim).

    On a CPU it is computed in fp32 while training: in bf16 the fused kernel's backward pass takes up to four times that
    (docs/performance.md).
    """
    dtype = torch.float32 if q.requires_grad and q.device.type == "cpu" else v.dtype
    mask = None if bias is None else bias.to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        out = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask, dropout_p=dropout)
    out = out.to(v.dtype)
    if _exporting():  # what a converter puts in the place of the fused kernel has strides that do not allow the view
        out = out.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    return rearrange(out, "b h t d -> b t (h d)")


@torch.no_grad()
def attention_received(q: Tensor, k: Tensor, bias: Tensor | None, of: str) -> Tensor:
    """The share of attention that each token gets, mean over the heads, (B, T) float32.

    Args:
        q, k: queries and keys, (B, heads, T, head_dim).
        bias: added to the scores, broadcastable to (B, heads, T, T).
        of: "class": from the first token alone, T x head_dim MACs a head; "all": mean over all T tokens, T times that.
    """
    if of == "class":
        q = q[:, :, :1]
        bias = bias if bias is None else bias[..., :1, :]
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float()
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).mean(dim=(1, 2))
