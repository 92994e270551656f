"""MACs of our own models by formula: from the settings alone, without building or running anything.

This stands beside the traced count of `engine.complexity`, and neither uses the other. Kinds are those of
`engine.ops.KINDS`; `product` is the matching of tokens. B = 1; T tokens, D width, C channels, G patches a side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from engine.ops import CountError
from models.settings import Settings

PREFIX = 1  # the class token


def token_counts(settings: Settings) -> list[tuple[int, int]]:
    """Tokens that enter and leave each block, the class token included: r of them go, at most half of the patches."""
    merge = settings.merge
    wanted = [merge.r] * settings.depth if isinstance(merge.r, int) else merge.r
    patches = (settings.img_size // settings.patch_size) ** 2
    counts = []
    for r in wanted:
        left = patches if merge.method == "none" else max(patches - r, patches - patches // 2)
        counts.append((PREFIX + patches, PREFIX + left))
        patches = left
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


def _tome(patches: int, dim: int) -> int:
    """Every odd patch with every even one, over the `dim` channels of a key's mean over the heads."""
    return (patches // 2) * (patches - patches // 2) * dim


STEMS: dict[str, Callable[[Any], int]] = {"patch": _patch_stem, "conv": _conv_stem}
MATCHING: dict[str, Callable[[int, int], int]] = {"tome": _tome}
# MACs at one position of the map, C channels in and out.
CONV_BLOCKS: dict[str, Callable[[int], int]] = {
    "convnext": lambda c: 7 * 7 * c + c * 4 * c + 4 * c * c,  # depthwise 7x7, 1x1 to 4C, 1x1 back
    "residual": lambda c: 2 * 3 * 3 * c * c,  # two 3x3
}


def _encoder(s: Any, stem: str) -> Counter:
    """Stem, transformer blocks that merge between attention and MLP, and the class token's head."""
    dim, hidden = s.embed_dim, int(s.embed_dim * s.mlp_ratio)
    total = Counter(convolution=_entry(STEMS, stem, "STEMS")(s), linear=dim * s.num_classes)
    for before, after in token_counts(s):
        total["linear"] += 4 * before * dim**2 + 2 * after * dim * hidden  # q, k, v, projection; MLP
        total["attention"] += 2 * before**2 * dim  # q k^T; its product with v
        if after < before:
            matching = _entry(MATCHING, s.merge.method, "MATCHING")
            total["product"] += matching(before - PREFIX, dim // s.num_heads)
    return total


def _vit(s: Any) -> Counter:
    return _encoder(s, "patch")


def _hybrid(s: Any) -> Counter:
    """The encoder, then bridge (tokens and log size projected, a 1x1 convolution as skip), CNN stage, linear head."""
    total = _encoder(s, s.stem)
    if s.cnn is None:
        return total
    tokens, dim = token_counts(s)[-1][1], s.cnn.dim or s.embed_dim
    cells = (s.img_size // s.patch_size // s.bridge.stride) ** 2
    total["linear"] += tokens * (s.embed_dim + 1) * dim + dim * s.num_classes
    total["convolution"] += s.bridge.skip * s.embed_dim * dim * cells
    total["convolution"] += s.cnn.depth * cells * _entry(CONV_BLOCKS, s.cnn.block, "CONV_BLOCKS")(dim)
    return total


FORMULAS: dict[str, Callable[[Any], Counter]] = {"vit": _vit, "hybrid": _hybrid}


def formula_macs(settings: Settings) -> dict[str, int]:
    """MACs by kind of one image through a model of ours.

    Args:
        settings: a model's checked options (ViTSettings, HybridSettings), `name` included.

    Raises:
        CountError: a model or a part of it that has no formula here.
    """
    return dict(_entry(FORMULAS, settings.name, "FORMULAS")(settings))


def _entry(table: dict[str, Any], name: str, where: str) -> Any:
    if name not in table:
        raise CountError(f"no formula for {name!r}: add its MACs to {where} in engine/analytic.py")
    return table[name]
