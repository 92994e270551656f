"""The ViTs of timm and torchvision that merging goes into: where their blocks are, and what a block does to tokens that
are merged. Each block's equations are written here anew, around the block's own submodules: norms, projections,
dropout, layer scale and MLP are called as they stand, so that LoRA layers and hooks in them take part. The exceptions
are the libraries' own: of Beit's qkv (where it has biases) and of torchvision's attention's projections their code too
uses the weights and calls no forward. A LoRA layer there is refused, and a hook does not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from timm.models import beit, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vision_transformer as torchvision_vit

from ..settings import UserError
from .contract import Grid
from .layer import MergeLayer, attend
from .refusals import check_by_weight, why_not
from .tokens import Tokens

SERVED = "timm's VisionTransformer and Beit, and torchvision's VisionTransformer"

# Rows and columns of patches (None: of a model that was built for no image size), and whether every image has them.
Layout = Callable[[], tuple[Grid | None, bool]]


@dataclass(frozen=True)
class Family:
    """Where a kind of model keeps what merging has to know."""

    blocks: str  # path of the container of its blocks
    width: Callable[[nn.Module], int]  # of a token
    prefix: Callable[[nn.Module], int]  # leading tokens that are no patches
    class_token: Callable[[nn.Module], bool]  # whether the first of them is a class token
    layout: Callable[[nn.Module], Layout]


def _timm_layout(patch_embed: nn.Module) -> tuple[Grid | None, bool]:
    if patch_embed.grid_size is None:
        return None, False
    return tuple(patch_embed.grid_size), getattr(patch_embed, "strict_img_size", False)


def _fixed_layout(side: int) -> tuple[Grid, bool]:
    return (side, side), True


FAMILIES = {
    vision_transformer.VisionTransformer: Family(
        blocks="blocks",
        width=lambda model: model.embed_dim,
        prefix=lambda model: model.num_prefix_tokens,
        class_token=lambda model: model.has_class_token,
        layout=lambda model: partial(_timm_layout, model.patch_embed),  # asked anew each time: set_input_size
    ),
    beit.Beit: Family(
        blocks="blocks",
        width=lambda model: model.embed_dim,
        prefix=lambda model: model.num_prefix_tokens,
        class_token=lambda model: True,
        layout=lambda model: partial(_timm_layout, model.patch_embed),
    ),
    torchvision_vit.VisionTransformer: Family(
        blocks="encoder.layers",
        width=lambda model: model.hidden_dim,
        prefix=lambda model: 1,
        class_token=lambda model: True,
        layout=lambda model: partial(_fixed_layout, model.image_size // model.patch_size),
    ),
}


def family_of(model: nn.Module) -> Family:
    """The family of a model.

    Raises:
        UserError: a model of none of them, or of a class that sends its tokens another way.
    """
    cls = type(model)
    base = next((base for base in cls.__mro__ if base in FAMILIES), None)
    if base is None:
        raise UserError(f"{cls.__name__} {why_not(cls, 'is not a model that merging knows')}; wrap takes {SERVED}")
    for method in ("forward", "forward_features"):
        if getattr(cls, method, None) is not getattr(base, method, None) or method in vars(model):
            raise UserError(f"{cls.__name__} has a {method} of its own, and only {base.__name__}'s is known to wrap")
    return FAMILIES[base]


def _heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """(B, T, 3 x heads x head_dim) -> q, k, v, each (B, heads, T, head_dim)."""
    return rearrange(qkv, "b t (three h d) -> three b h t d", three=3, h=num_heads).unbind(0)


def _timm_attention(attn: nn.Module, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, T, C) -> attended (B, T, C), queries and keys (B, heads, T, head_dim)."""
    q, k, v = _heads(attn.qkv(x), attn.num_heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = attend(q, k, v, bias, attn.attn_drop.p if attn.training else 0.0)
    if hasattr(attn, "norm"):  # since timm 1.0.16
        out = attn.norm(out)
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out)), q, k


def _vit_block(
    block: nn.Module, x: Tensor, tokens: Tokens, r: int, merge: MergeLayer, bias: Tensor | None
) -> tuple[Tensor, Tokens]:
    """timm's Block: x + LS(attention(norm x)), then x + LS(MLP(norm x)); merging in between."""
    source = block.norm1(x)
    attended, q, k = _timm_attention(block.attn, source, bias)
    x = x + block.drop_path1(block.ls1(attended))
    x, tokens = merge(x, tokens, r, source, q, k, bias)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), tokens


def _post_norm_block(
    block: nn.Module, x: Tensor, tokens: Tokens, r: int, merge: MergeLayer, bias: Tensor | None
) -> tuple[Tensor, Tokens]:
    """timm's ResPostBlock: x + norm(attention(x)), then x + norm(MLP(x)); merging in between."""
    attended, q, k = _timm_attention(block.attn, x, bias)
    source, x = x, x + block.drop_path1(block.norm1(attended))
    x, tokens = merge(x, tokens, r, source, q, k, bias)
    return x + block.drop_path2(block.norm2(block.mlp(x))), tokens


def _torchvision_block(
    block: nn.Module, x: Tensor, tokens: Tokens, r: int, merge: MergeLayer, bias: Tensor | None
) -> tuple[Tensor, Tokens]:
    """torchvision's EncoderBlock: x + dropout(attention(norm x)), then x + MLP(norm x); merging in between.

    nn.MultiheadAttention uses its projections' weights and not their forward; so does this.
    """
    attn, source = block.self_attention, block.ln_1(x)
    q, k, v = _heads(F.linear(source, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads)
    attended = attend(q, k, v, bias, attn.dropout if attn.training else 0.0)
    x = x + block.dropout(F.linear(attended, attn.out_proj.weight, attn.out_proj.bias))
    x, tokens = merge(x, tokens, r, source, q, k, bias)
    return x + block.mlp(block.ln_2(x)), tokens


def _beit_block(
    block: nn.Module,
    x: Tensor,
    tokens: Tokens,
    r: int,
    merge: MergeLayer,
    bias: Tensor | None,
    shared_rel_pos_bias: Tensor | None = None,
) -> tuple[Tensor, Tokens]:
    """timm's Beit block: a ViT's, with a position bias on the scores: its own table's, a shared one, or both."""
    attn, source = block.attn, block.norm1(x)
    own = None if attn.relative_position_bias_table is None else _table_bias(attn)
    positions = [b for b in (own, shared_rel_pos_bias) if b is not None]
    if positions:
        position = between_tokens(sum(positions), tokens)
        bias = position if bias is None else position + bias
    q, k, v = _heads(_beit_qkv(attn, source), attn.num_heads)
    attended = attn.proj(attend(q, k, v, bias, attn.attn_drop.p if attn.training else 0.0))

    scale1, scale2 = (1.0, 1.0) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    x = x + block.drop_path1(scale1 * attn.proj_drop(attended))
    x, tokens = merge(x, tokens, r, source, q, k, bias)
    return x + block.drop_path2(scale2 * block.mlp(block.norm2(x))), tokens


def _beit_qkv(attn: nn.Module, x: Tensor) -> Tensor:
    """Keys have no bias. Like timm's own, it uses the projection's weight; its forward, where biases are separate."""
    if attn.q_bias is None:
        return attn.qkv(x)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    return attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)


def _table_bias(attn: nn.Module) -> Tensor:
    """A table (distances, heads) looked up for each pair of input tokens: (heads, P + N, P + N)."""
    return attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1)


def between_tokens(bias: Tensor, tokens: Tokens) -> Tensor:
    """How a relative position bias follows merged tokens: the mean of the bias between their members.

        b_IJ = 1 / (|I| |J|) sum_{i in I} sum_{j in J} b_ij

    It is an average: softmax over the members' own scores would weigh exp(b_ij), which no single bias can say. A
    pruned patch counts as a member of the token that it is shown as. A soft state's members are weighed by their share.

    Args:
        bias: of input tokens, (heads, P + N, P + N).
        tokens: their state.

    Returns:
        (1, heads, P + N, P + N) while nothing is merged, then (B, heads, T, T) float32.
    """
    if not tokens.merged:
        return bias.unsqueeze(0)
    bias = bias.float()
    if tokens.soft is not None:
        share = tokens.soft.share / tokens.size.clamp(min=1e-6).unsqueeze(1)  # (B, P + N, T)
        with torch.autocast(bias.device.type, enabled=False):
            return share.mT.unsqueeze(1) @ bias @ share.unsqueeze(1)
    heads, many = bias.shape[:2]
    batch, left = tokens.size.shape
    # Members side by side, token by token, and where each token's begin. Bags of rows that a batch shares are three to
    # four times as fast as one-hot products on a CPU, twice as fast as scatter.
    members = tokens.index.argsort(dim=1, stable=True)
    ones = torch.ones_like(tokens.index)
    count = ones.new_zeros(batch, left).scatter_add(1, tokens.index, ones)
    image = torch.arange(batch, device=bias.device).unsqueeze(1) * many
    start = (count.cumsum(1) - count + image).flatten()

    columns = rearrange(bias, "h i j -> j (h i)")
    columns = F.embedding_bag(members.flatten(), columns, start, mode="mean")
    rows = rearrange(columns, "(b j) (h i) -> (b i) (h j)", b=batch, h=heads)
    rows = F.embedding_bag((members + image).flatten(), rows, start, mode="mean")
    return rearrange(rows, "(b i) (h j) -> b h i j", b=batch, h=heads)


@dataclass(frozen=True)
class Kind:
    """A kind of block: what it does to merged tokens, and the parts that this knows of."""

    run: Callable[..., tuple[Tensor, Tokens]]
    attention: tuple[str, type[nn.Module]]  # where it is, and its class
    parts: frozenset[str]
    attention_parts: frozenset[str]
    takes: frozenset[str] = frozenset()  # what may be given to it beside x
    by_weight: Callable[[nn.Module], str] = lambda attn: ""  # the attention's projection that is never called, or none
    adaptable: tuple[str, ...] = ()  # where LoRA can go instead


_TIMM = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"})
_BLOCK = frozenset({"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"})
KINDS = {
    vision_transformer.Block: Kind(_vit_block, ("attn", vision_transformer.Attention), _BLOCK | {"ls1", "ls2"}, _TIMM),
    vision_transformer.ResPostBlock: Kind(_post_norm_block, ("attn", vision_transformer.Attention), _BLOCK, _TIMM),
    beit.Block: Kind(
        _beit_block,
        ("attn", beit.Attention),
        _BLOCK | {"gamma_1", "gamma_2"},
        frozenset({"qkv", "q_bias", "v_bias", "relative_position_bias_table", "attn_drop", "proj", "proj_drop"}),
        frozenset({"shared_rel_pos_bias"}),
        by_weight=lambda attn: "" if attn.q_bias is None or attn.qkv_bias_separate else "qkv",
        adaptable=("proj", "fc1", "fc2"),
    ),
    torchvision_vit.EncoderBlock: Kind(
        _torchvision_block,
        ("self_attention", nn.MultiheadAttention),
        frozenset({"ln_1", "self_attention", "dropout", "ln_2", "mlp"}),
        frozenset({"in_proj_weight", "in_proj_bias", "out_proj"}),
        by_weight=lambda attn: "out_proj",
        adaptable=("mlp.0", "mlp.3"),
    ),
}


def kind_of(block: nn.Module, name: str) -> Kind:
    """What a block does to merged tokens.

    Raises:
        UserError: a block or an attention of another class than is known, be it derived from it, or an adapter where it
            would have no effect.
    """
    kind = KINDS.get(type(block))
    if kind is None:
        raise UserError(f"{name} is a {type(block).__name__}, which {why_not(type(block), 'merging does not know')}")
    where, expected = kind.attention
    attn = getattr(block, where)
    if type(attn) is not expected:
        raise UserError(
            f"{name}.{where} is a {type(attn).__name__}; merging knows {expected.__module__}.{expected.__name__}"
        )
    check_by_weight(attn, f"{name}.{where}", kind)
    return kind


def attention_width(block: nn.Module) -> int:
    """Width of an attention head."""
    attn = getattr(block, kind_of(block, "block").attention[0])
    width = attn.embed_dim if isinstance(attn, nn.MultiheadAttention) else attn.proj.in_features
    return width // attn.num_heads
