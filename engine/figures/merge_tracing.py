"""Computes which patches of an image are merged into one token: by a run's model, or by the patches' colours alone.

engine.figures.merge_drawing draws the result, `Merged`.
"""

from __future__ import annotations

from math import ceil, pi, prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from engine.data.loading.loader import Normalise
from engine.measure.evaluate import eval_mode
from engine.runs.restore import TrainedModel
from models.interface import merging_method, model_name, trace_tokens
from models.merging import MERGERS, effective_schedule, initial_tokens, merge, size_bias, wrap
from models.merging.layer import attention_received
from models.settings import UserError

STEPS = 6  # number of merging steps without a model
THUMBNAIL = 4  # pixels per side of the thumbnails by which patches are compared without a model
LEARNED = [name for name, merger in MERGERS.items() if merger.learns]  # methods that need training
UNTRAINED = [name for name in MERGERS if name not in ("none", *LEARNED)]


class Merged(NamedTuple):
    """One image's patches after merging."""

    title: str
    index: Tensor  # int64 (rows, columns): the token of each patch
    tokens: int  # how many remain, without prefix tokens such as the class token


def merged_by_colour(image: Tensor, patch: int, method: str, keep: float) -> Merged:
    """Merges an image's patches by their colours, without a model, in STEPS steps of equal size if possible.

    A token is the mean of its patches' pixels. Tokens are compared by their thumbnails (see `features`). Methods that
    use attention get the attention of one head with q = k = these features, with the size bias; the class token is the
    mean of all patches.

    Args:
        image: uint8 (3, H, W), sides divisible by `patch`.
        patch: side of a patch, pixels.
        method: a name of MERGERS, not one of LEARNED.
        keep: share of the patches that should remain, rounded up; a method that cannot merge so many keeps more.
    """
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    patches, merger = prod(grid), MERGERS[method]
    x = rearrange(image.float() / 255, "c (h p) (w q) -> 1 (h w) (c p q)", p=patch, q=patch)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    tokens = initial_tokens(x, grid)
    removed = patches - ceil(round(keep * patches, 6))
    plan = [removed // STEPS + (step < removed % STEPS) for step in range(STEPS)]
    for step, r in enumerate(effective_schedule(plan, patches, merger, grid)):
        metric, attention = features(x, patch), None
        if merger.attends is not None:
            attention = attention_received(metric[:, None], metric[:, None], size_bias(tokens), merger.attends)
        x, tokens = merge(x, tokens, metric, r, merger, 1, attention, step / STEPS)
    return Merged(method, tokens.index[0, 1:].view(grid), tokens.size.shape[1] - 1)


def features(x: Tensor, patch: int) -> Tensor:
    """Computes the features by which patches are compared: (B, T, 3 patch^2), in [0, 1] -> float32 (B, T, D).

    Every value v of a patch's thumbnail (4 x 4 colours) becomes cos(pi v) and sin(pi v), so that all features have the
    same norm. The cosine similarity of two patches is then the mean of cos(pi (v - w)) over their values v and w: 1 for
    equal thumbnails, -1 for black and white.
    """
    pixels = rearrange(x, "b t (c p q) -> (b t) c p q", p=patch, q=patch)
    side = min(THUMBNAIL, patch)
    values = pi * F.adaptive_avg_pool2d(pixels, side).flatten(1).view(*x.shape[:2], -1)
    return torch.cat([values.cos(), values.sin()], dim=-1)


def merged_by_run(run: TrainedModel, image: Tensor) -> Merged:
    """Traces what a run's model merges in one image.

    Args:
        run: the run; its model computes in fp32.
        image: uint8 (C, H, W), as engine.data.loading.inputs reads it for this run.

    Raises:
        UserError: the model merges no tokens; the message says how to turn merging on, or which models can merge.
    """
    device = next(run.model.parameters()).device
    normalised = Normalise(run.mean, run.std)(image[None]).to(device)
    with eval_mode(run.model):
        traced = trace_tokens(run.model, normalised)
    if traced is None:
        raise _merges_nothing(run)
    tokens, grid = traced
    prefix = tokens.index.shape[1] - prod(grid)
    index = tokens.index[0, prefix:].view(grid).cpu()
    return Merged(merging_method(run.settings.model), index, tokens.size.shape[1] - prefix)


def _merges_nothing(run: TrainedModel) -> UserError:
    """Returns the error for a model without merging, with advice that works for this model."""
    model = run.settings.model
    where = f"model.name = {model_name(model)!r}: run {run.settings.name} merges no tokens"
    try:
        wrap(run.model, method="tome", r=8)
    except UserError as error:
        return UserError(f"{where} and cannot ({error}); give a run of such a model, or of vit, hybrid or conformer")
    return UserError(f"{where}; add merge.method=tome merge.r=8")
