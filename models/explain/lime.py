"""LIME: which regions of an image a linear model of them says the answer depends on, and how well it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import exp, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import trace_tokens
from ..settings import UserError, nearest
from .evaluating import Evaluation, Progress, mean_colour, needs, seeded, whole
from .found import Found

SEGMENTS = ("slic", "quickshift", "clusters")
PACKAGES = ("lime", "captum and scikit-image")
KERNEL_WIDTH = 0.25  # of the authors' code, as are the ridge penalty, quickshift's options and the first sample
RIDGE = 1.0


def lime(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    segments: str = "slic",
    regions: int = 50,
    samples: int = 1000,
    seed: int = 0,
    batch: int = 50,
    progress: Progress | None = None,
) -> Found:
    """LIME (Ribeiro, Singh and Guestrin, 2016), through captum: a linear model of which regions are shown.

    Each sample shows every region with probability 1/2, and the image's mean colour in place of the others. The
    target's logit, which unlike its probability does not saturate, is fitted by ridge regression. A sample counts by
    exp(-d^2 / (2 x 0.25^2)), where d is the cosine distance to the sample that shows all, which is the first.

    An image's result depends neither on the images beside it nor on `batch`, and torch's random state stays as it was.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.
        segments: "slic" or "quickshift", superpixels of scikit-image; "clusters", the regions that the model itself
            merged by its last block. Superpixels need something like a photograph, so each image is rescaled to 0..1
            by its own least and greatest value, and shown in grey unless it has three channels.
        regions: how many SLIC is asked for; it may find fewer.
        samples: perturbed images for each image.
        seed: of the samples, of quickshift, and of whatever the model draws.
        batch: perturbed images that are evaluated at once.
        progress: called after every batch with how many are done and how many there are.

    Returns:
        (B, H, W): the weight of each pixel's region, negative where showing it lowers the logit; and for each image
        {"r2": the weighted R^2 of the linear model on its own samples, 0 where the logit never changed, "regions":
        their number}. With hardly more samples than regions, R^2 is high whatever the model does.

    Raises:
        UserError: a package is missing, an option's value, or "clusters" of a model that merges nothing.
    """
    if segments not in SEGMENTS:
        raise UserError(f"segments = {segments!r}: unknown; {nearest(str(segments), list(SEGMENTS))}")
    for name, value in {"regions": regions, "samples": samples, "batch": batch}.items():
        whole(name, value)
    whole("seed", seed, least=0)
    images = images.detach()
    with seeded(seed, images.device):
        parts = clusters(model, images) if segments == "clusters" else superpixels(images, segments, regions, seed)
    evaluate = Evaluation(model, len(images) * samples, progress)
    maps, notes = [], []
    for image, part, label in zip(images, parts, target.tolist(), strict=True):
        with seeded(seed, image.device):
            masks = torch.rand(samples, int(part.max()) + 1) < 0.5
            masks[0] = True
            fitted = _fitted(_scored(evaluate, image, part, label), masks, batch)
        maps.append(fitted.representation().to(image.device)[part])
        notes.append({"r2": fitted.r2, "regions": masks.shape[1]})
    return Found(torch.stack(maps), notes)


def _fitted(score: Callable[[Tensor], Tensor], masks: Tensor, batch: int) -> Ridge:
    """The linear model of the scores of masks (samples, regions)."""
    with needs(*PACKAGES):
        from captum.attr import LimeBase

    surrogate = Ridge()
    method = LimeBase(
        score,
        surrogate,
        similarity_func=_similarity,
        perturb_func=_each,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda mask, masks: mask,  # a batch is painted at once, in `_scored`
        to_interp_rep_transform=None,
    )
    method.attribute(masks, n_samples=len(masks), perturbations_per_eval=batch)
    return surrogate


def _scored(evaluate: Evaluation, image: Tensor, part: Tensor, label: int) -> Callable[[Tensor], Tensor]:
    """The logit (N,) of an image (C, H, W) of which the regions in masks (N, regions) are shown."""
    baseline = mean_colour(image)

    def score(masks: Tensor) -> Tensor:
        shown = masks.to(image.device)[:, part].unsqueeze(1)  # (N, 1, H, W)
        return evaluate(torch.where(shown, image, baseline))[:, label]

    return score


def _each(masks: Tensor) -> Iterator[Tensor]:
    yield from masks.unsqueeze(1)


def _similarity(masks: Tensor, shown: Tensor, mask: Tensor) -> float:
    """How much a sample counts: the cosine of a mask and one that shows all is the root of the share that is shown."""
    distance = 1 - sqrt(float(mask.float().mean()))
    return exp(-0.5 * (distance / KERNEL_WIDTH) ** 2)


class Ridge:
    """Weighted ridge regression with an intercept that is not penalised, as a surrogate for captum.

    Attributes:
        r2: after `fit`, the weighted R^2 on its own samples; 0 where the scores do not vary.
    """

    def fit(self, loader: Iterable[Sequence[Tensor]], **_: object) -> None:
        """Fits scores (N,) by masks (N, regions) with weights (N,), which captum's loader returns as one batch."""
        x, y, weight = (values.cpu().double() for values in next(iter(loader)))  # MPS has no float64
        share = weight / weight.sum()
        square = share @ y**2
        x, y = x - share @ x, y - share @ y
        weighted = x.T * weight
        penalty = RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        self._coefficients: Tensor = torch.linalg.solve(weighted @ x + penalty, weighted @ y)
        left, total = share @ (y - x @ self._coefficients) ** 2, share @ y**2
        varies = total > 1e-12 * square  # beyond the rounding of float32
        self.r2 = float(1 - left / total) if varies else 0.0

    def representation(self) -> Tensor:
        """The coefficients, (regions,)."""
        return self._coefficients.float()


def superpixels(images: Tensor, segments: str, regions: int, seed: int) -> Tensor:
    """Regions of each image (B, C, H, W) by scikit-image: (B, H, W) int64, numbered from 0 in each image.

    Raises:
        UserError: scikit-image is missing.
    """
    with needs(*PACKAGES):
        from skimage.segmentation import quickshift, slic

    found = []
    for image in images:
        least, greatest = image.aminmax()
        photo = (image - least) / (greatest - least).clamp(min=torch.finfo(image.dtype).tiny)
        if len(photo) != 3:  # colours are compared in Lab
            photo = photo.mean(0, keepdim=True).expand(3, -1, -1)
        pixels = photo.permute(1, 2, 0).cpu().double().numpy()
        if segments == "slic":
            labels = slic(pixels, n_segments=regions, sigma=1, start_label=0)
        else:
            labels = quickshift(pixels, kernel_size=4, max_dist=200, ratio=0.2, rng=seed)
        found.append(_numbered(torch.from_numpy(labels)).to(images.device))
    return torch.stack(found)


def clusters(model: nn.Module, images: Tensor) -> Tensor:
    """Regions that a model merged by its last block: (B, H, W) int64, numbered from 0 in each image.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.

    Raises:
        UserError: the model merges nothing, or does not know the rows and columns of its patches.
    """
    with torch.inference_mode():
        traced = trace_tokens(model, images)
    if traced is None or not traced[0].merged:
        raise UserError("segments = clusters: the model merges no tokens; use slic")
    tokens, grid = traced[0], traced[1] or traced[0].input_grid
    if grid is None:
        raise UserError("segments = clusters: the rows and columns of the patches are not known; use slic")
    patches = tokens.index[:, -grid[0] * grid[1] :]  # prefix tokens come first
    maps = torch.stack([_numbered(image) for image in patches]).view(-1, 1, *grid)
    pixels = F.interpolate(maps.float(), images.shape[2:], mode="nearest-exact")
    return pixels.squeeze(1).long()


def _numbered(labels: Tensor) -> Tensor:
    """The same regions with the numbers 0, 1, 2, ..."""
    numbers: Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbers
