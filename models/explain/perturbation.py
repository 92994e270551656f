"""Explanations by what the model answers where parts of an image are gone, or on the way from nothing to the image.

They ask the model alone, so that merging is a part of what they explain. All images are perturbed in normalised units.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..settings import UserError
from .evaluating import Evaluation, Progress, mean_colour, needs, seeded, whole
from .found import Found

GRADIENT_BATCH = 10  # images whose activations are kept at once for gradients


def integrated_gradients(model: nn.Module, images: Tensor, target: Tensor, *, steps: int = 50) -> Found:
    """Integrated gradients (Sundararajan, Taly and Yan, 2017), through captum: from the image's mean colour to it.

    The sum of the relevance is f(image) - f(baseline), f being the target's logit, up to the error of the integral.
    Where tokens merge, f jumps as other tokens are merged along the way, and gradients do not see jumps: the error
    then stays however many steps there are, and `delta` says how large it is.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.
        steps: points at which the gradient is taken (Gauss-Legendre).

    Returns:
        (B, H, W), summed over the channels, and for each image {"delta": sum of the relevance - (f(image) -
        f(baseline))}.

    Raises:
        UserError: captum is missing, or an option's value.
    """
    whole("steps", steps)
    with needs("integrated_gradients", "captum"):
        from captum.attr import IntegratedGradients

    method = IntegratedGradients(model)
    maps, notes = [], []
    for image, label in zip(images.detach().unsqueeze(1), target.tolist(), strict=True):
        with torch.enable_grad():
            relevance, delta = method.attribute(
                image.clone().requires_grad_(),
                baselines=mean_colour(image),
                target=label,
                n_steps=steps,
                internal_batch_size=GRADIENT_BATCH,
                return_convergence_delta=True,
            )
        maps.append(relevance.detach().sum(1))
        notes.append({"delta": float(delta)})
    return Found(torch.cat(maps), notes)


def occlusion(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    window: int = 32,
    stride: int = 16,
    batch: int = 50,
    progress: Progress | None = None,
) -> Tensor:
    """Occlusion (Zeiler and Fergus, 2014), through captum: how far the target's logit falls without a square.

    A square is replaced by the image's mean colour. A pixel's relevance is the mean over the squares that cover it.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.
        window: side of the square in pixels.
        stride: its steps in pixels, at most `window`; the last square of a row may be cut off by the image's edge.
        batch: perturbed images that are evaluated at once.
        progress: called after every batch with how many are done and how many there are.

    Returns:
        (B, H, W): positive where the logit falls.

    Raises:
        UserError: captum is missing, a window larger than the image, or another option's value.
    """
    channels, rows, columns = images.shape[1:]
    if whole("window", window) > min(rows, columns):
        raise UserError(f"window = {window}: larger than the image of {rows} x {columns} pixels")
    if whole("stride", stride) > window:
        raise UserError(f"stride = {stride}: would leave pixels out; use at most window = {window}")
    whole("batch", batch)
    with needs("occlusion", "captum"):
        from captum.attr import Occlusion

    squares = (1 + ceil((rows - window) / stride)) * (1 + ceil((columns - window) / stride))
    method = Occlusion(Evaluation(model, len(images) * (squares + 1), progress))  # one more: the image itself
    maps = []
    for image, label in zip(images.detach().unsqueeze(1), target.tolist(), strict=True):
        relevance = method.attribute(
            image,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, stride, stride),
            baselines=mean_colour(image),
            target=label,
            perturbations_per_eval=batch,
        )
        maps.append(relevance.mean(1))
    return torch.cat(maps)


def rise(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    samples: int = 1000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = 50,
    progress: Progress | None = None,
) -> Tensor:
    """RISE (Petsiuk, Das and Saenko, 2018): the mean of random masks, weighted by the target's probability under each.

    As in the paper, images are multiplied by masks: what is hidden fades to 0, which in normalised units is the mean
    colour of the data that the model was trained on.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.
        samples: masks for each image; the same ones for all images.
        cells: a mask is a random grid of cells x cells, enlarged bilinearly and shifted by less than a cell.
        keep: the probability that a cell is shown.
        seed: of the masks.
        batch: perturbed images that are evaluated at once.
        progress: called after every batch with how many are done and how many there are.

    Returns:
        (B, H, W): the expected probability where the pixel is shown, not negative.

    Raises:
        UserError: an option's value.
    """
    samples, cells, batch = whole("samples", samples), whole("cells", cells), whole("batch", batch)
    whole("seed", seed, least=0)
    if not 0 < keep < 1:
        raise UserError(f"keep = {keep!r}: give a probability above 0 and below 1")
    rows, columns = images.shape[2:]
    high, wide = ceil(rows / cells), ceil(columns / cells)
    evaluate = Evaluation(model, len(images) * samples, progress)
    maps = []
    for image, label in zip(images.detach().unsqueeze(1), target.tolist(), strict=True):
        total = torch.zeros(rows * columns, device=image.device)
        with seeded(seed, image.device):
            grids = (torch.rand(samples, 1, cells, cells) < keep).float()
            down, right = torch.randint(high, (samples,)).tolist(), torch.randint(wide, (samples,)).tolist()
            for first in range(0, samples, batch):
                part = grids[first : first + batch].to(image.device)
                large = F.interpolate(part, ((cells + 1) * high, (cells + 1) * wide), mode="bilinear")
                corners = zip(down[first : first + batch], right[first : first + batch])
                masks = torch.stack([m[:, y : y + rows, x : x + columns] for m, (y, x) in zip(large, corners)])
                probability = evaluate(image * masks).float().softmax(1)[:, label]
                total += probability @ masks.flatten(1)
        maps.append(total.view(rows, columns) / (samples * keep))
    return torch.stack(maps)
