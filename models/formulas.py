"""Computes the MACs of our own models by formula, from their settings alone, without building or running a model.

This is independent of the traced count in `engine.cost.macs`, which checks it. The kinds of MACs are those of
`engine.cost.ops.KINDS`; `product` is the matching of tokens, including the attention scores that a method requires.
B = 1; T tokens, D width, C channels, G patches per side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from .merging.budget import CountError
from .merging.contract import Adaptive, Counts
from .merging.mixtures import compose_macs
from .settings import Settings
from .settings.vit import EncoderSettings

PREFIX = 1  # the class token


def token_counts(settings: Settings) -> list[tuple[int, int]]:
    """The tokens that enter and leave each transformer block, class token included; empty for models without blocks.

    Raises:
        CountError: they depend on the image.
    """
    if not isinstance(settings, EncoderSettings):
        return []
    left = PREFIX + prod(settings.grid)
    counts = []
    for removed in settings.schedule():
        if isinstance(removed, Adaptive):
            raise CountError("the number of tokens depends on the image; macs_of_image counts one")
        counts.append((left, left - removed))
        left -= removed
    return counts


def _patch_stem(s: Any) -> int:
    """One P x P convolution from C to D channels, with stride P: every pixel is read once."""
    return s.img_size**2 * s.in_chans * s.embed_dim


def _conv_stem(s: Any) -> int:
    """3x3 convolutions at full, half ... resolution down to the patches, channels doubling up to D; then 1x1."""
    size, total, chans = s.img_size, 0, s.in_chans
    grid = s.img_size // s.patch_size
    while size >= grid:
        width = max(s.embed_dim * grid // size, 8)
        total += 9 * chans * width * size**2
        size, chans = size // 2, width
    return total + chans * s.embed_dim * grid**2


STEMS: dict[str, Callable[[Any], int]] = {"patch": _patch_stem, "conv": _conv_stem}
# MACs at one position of the map, with C channels in and out.
CONV_BLOCKS: dict[str, Callable[[int], int]] = {
    "convnext": lambda c: 7 * 7 * c + c * 4 * c + 4 * c * c,  # depthwise 7x7, 1x1 to 4C, 1x1 back
    "residual": lambda c: 2 * 3 * 3 * c * c,  # two 3x3
}


def _encoder(s: Any, stem: str) -> Counter:
    """Stem, transformer blocks, and the class token's head."""
    stem_macs = _entry(STEMS, stem, "STEMS")(s)
    return Counter(convolution=stem_macs, linear=s.embed_dim * s.classes) + _transformer(s)


def _transformer(s: Any) -> Counter:
    """Blocks that merge between attention and MLP."""
    dim, hidden, total = s.embed_dim, int(s.embed_dim * s.mlp_ratio), Counter()
    for before, after in token_counts(s):
        total["linear"] += 4 * before * dim**2 + 2 * after * dim * hidden  # q, k, v, projection; MLP
        total["attention"] += 2 * before**2 * dim  # q k^T; its product with v
        if after < before:
            total += _merge(s, before, before - after)
    return total


def _merge(s: Any, tokens: int, removed: int) -> Counter:
    """One block's matching, and the learned head if tokens are compared by it."""
    metric, head_dim, merger = s.merge.compared_by(), s.embed_dim // s.num_heads, s.merge.merger()
    if merger.macs is None:
        raise CountError(
            f"no formula for {s.merge.method!r}: give its entry in MERGERS (models/merging/methods) `macs`"
        )
    metric_dim = s.embed_dim if metric == "tokens" else head_dim
    counts = Counts(tokens - PREFIX, removed, PREFIX, metric_dim, s.embed_dim)
    matching, linear = merger.macs(counts, **merger.options), merger.linear(counts)
    head = tokens * s.embed_dim * head_dim if metric == "learned" else 0
    return Counter(product=matching, linear=head + linear)


def _composed(s: Any) -> int:
    """The shares of a soft state after the last block. Logits of a ViT do not depend on them, those of a map do."""
    if not s.merge.merger().mixes:
        return 0
    counts = [(before - PREFIX, after - PREFIX) for before, after in token_counts(s) if after < before]
    return sum(compose_macs(prod(s.grid), before, after) for before, after in counts)


def _by_shares(s: Any, tokens: int, width: int, prefix: int) -> int:
    """Values of tokens, `prefix` of which are no patches, brought to the patches, or the reverse, by shares.

    Without MACs where each patch has one token: then it is a gather, or a mean over members.
    """
    soft = s.merge.merger().mixes and tokens - prefix < prod(s.grid)
    return soft * prod(s.grid) * tokens * width


def _vit(s: Any) -> Counter:
    return _encoder(s, "patch")


def _hybrid(s: Any) -> Counter:
    """The encoder, then bridge (tokens and log size projected, a 1x1 convolution as skip), CNN stage, linear head."""
    total = _encoder(s, s.stem)
    if s.cnn is None:
        return total
    tokens, dim = token_counts(s)[-1][1], s.cnn.dim or s.embed_dim
    if s.bridge is None:  # the patches that are left are the map
        tokens = cells = tokens - PREFIX
    else:
        cells = (s.img_size // s.patch_size // s.bridge.stride) ** 2
        total["product"] += _composed(s) + _by_shares(s, tokens, dim, PREFIX)
    skip = s.bridge is None or s.bridge.skip
    total["linear"] += tokens * (s.embed_dim + 1) * dim + dim * s.classes
    total["convolution"] += skip * s.embed_dim * dim * cells
    total["convolution"] += s.cnn.depth * cells * _entry(CONV_BLOCKS, s.cnn.block, "CONV_BLOCKS")(dim)
    return total


def _bottleneck(chans: int, width: int, before: int, after: int, *, project: bool) -> int:
    """1x1, 3x3 and 1x1 with W / 4 channels inside, from `before` to `after` positions; `project`: a 1x1 residual."""
    inner = width // 4
    main = chans * inner * before + 9 * inner**2 * after + inner * width * after
    return main + project * chans * width * after


def _conformer(s: Any) -> Counter:
    """Stem, transformer, and from the second block on two bottlenecks and an exchange in both directions; two heads.

    From map to tokens, features are projected before they are pooled, at each position of the map; from tokens to map,
    at each token.
    """
    per_stage = s.depth // 3
    side, width = s.img_size // s.stem_stride, s.base_channel * s.channel_ratio
    conv = 49 * s.in_chans * s.base_channel * (s.img_size // min(s.stem_stride, 2)) ** 2
    conv += _bottleneck(s.base_channel, width, side**2, side**2, project=True) + s.base_channel * s.embed_dim * side**2
    shares = _composed(s)
    for i, (entered, after) in enumerate(token_counts(s)):
        if i == 0:
            continue
        before, chans, first = side**2, width, i % per_stage == 0
        if first:  # a stage begins: the map halves, the channels double
            side, width = side // 2, 2 * width
        last = i == s.depth - 1
        end = -(-side // 2) if last else side  # the last map halves once more
        conv += _bottleneck(chans, width, before, side**2, project=first)
        conv += _bottleneck(width, width, side**2, end**2, project=last)
        conv += width // 4 * s.embed_dim * (side**2 + after - PREFIX)
        shares += _by_shares(s, entered - PREFIX, s.embed_dim, 0) + _by_shares(s, after - PREFIX, width // 4, 0)
    return Counter(convolution=conv, product=shares, linear=(s.embed_dim + width) * s.classes) + _transformer(s)


def _cnn(s: Any) -> Counter:
    """The 3x3 convolution into each stage, its residual blocks, and the linear head."""
    conv, chans = 0, s.in_chans
    for number, depth in enumerate(s.depths):
        width, cells = s.width * 2**number, (s.img_size // 2**number) ** 2
        conv += cells * (9 * chans * width + depth * _entry(CONV_BLOCKS, "residual", "CONV_BLOCKS")(width))
        chans = width
    return Counter(convolution=conv, linear=chans * s.classes)


def _lenet5(s: Any) -> Counter:
    """Two 5x5 convolutions at each of their positions, and three linear layers."""
    first, second = s.sides
    conv = 25 * (s.in_chans * 6 * (s.img_size + 2 * s.padding - 4) ** 2 + 6 * 16 * (first + 2 * s.padding - 4) ** 2)
    return Counter(convolution=conv, linear=16 * second**2 * 120 + 120 * 84 + 84 * s.classes)


FORMULAS: dict[str, Callable[[Any], Counter]] = {
    "vit": _vit,
    "hybrid": _hybrid,
    "conformer": _conformer,
    "cnn": _cnn,
    "lenet5": _lenet5,
}


def formula_macs(settings: Settings) -> dict[str, int]:
    """MACs by kind of one image through a model of ours.

    Args:
        settings: a model's checked settings (ViTSettings, HybridSettings ...), `name` included.

    Raises:
        CountError: there is no formula here for the model or for a part of it.
    """
    return dict(_entry(FORMULAS, settings.name, "FORMULAS")(settings))


def macs_of_image(settings: Any, removed: Sequence[int]) -> dict[str, int]:
    """MACs by kind of one image of which each block removes so many patches, where that depends on the image.

    Args:
        settings: checked settings of a model of ours.
        removed: what each block removes of this image. A block whose number depends on the image matches also where it
            removes nothing.

    Raises:
        CountError: there is no formula here for the model or for a part of it.
    """
    merge = settings.merge.with_r(list(removed)).model_copy(update={"adaptive": None})
    fixed = settings.model_copy(update={"merge": merge})
    total = Counter(formula_macs(fixed))
    for (tokens, after), planned in zip(token_counts(fixed), settings.schedule(), strict=True):
        if tokens == after and isinstance(planned, Adaptive):
            total += _merge(settings, tokens, 0)
    return dict(total)


def _entry(table: dict[str, Any], name: str, where: str) -> Any:
    if name not in table:
        raise CountError(f"no formula for {name!r}: add its MACs to {where} in models/formulas.py")
    return table[name]
