"""How well the pixels of images are classified: intersection over union and pixel accuracy, from counts of each image.

The counts of images add up, so that a score of any set of images, such as one drawn by the bootstrap, is a function of
a sum. Scores are fractions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.data.masks import IGNORED
from engine.measure.paired import LEVEL, RESAMPLES, Difference

RIGHT, PREDICTED, LABELLED = range(3)  # what is counted, of each class


def pixel_counts(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Counts pixels by image and class; those whose mask is IGNORED are left out.

    Args:
        predicted: classes of pixels, int64 (B, H, W).
        masks: their true classes, (B, H, W).
        classes: the number of classes.

    Returns:
        int64 (B, 3, classes): pixels that are rightly predicted to be of a class, that are predicted to be, and that
        are.
    """
    # A number for each image and class; torchmetrics' samplewise counts are the same by one-hot vectors of all pixels,
    # which takes many times as long.
    batch = len(masks)
    row = classes * torch.arange(batch, device=masks.device).view(-1, 1, 1)
    counted = masks != IGNORED
    guess, truth = (row + predicted)[counted], (row + masks.long())[counted]
    groups = guess[guess == truth], guess, truth  # in the order of RIGHT, PREDICTED, LABELLED
    counts = [torch.bincount(group, minlength=batch * classes).view(batch, classes) for group in groups]
    return torch.stack(counts, dim=1)


def class_ious(counts: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class, from summed counts (..., 3, classes): (..., classes).

    Of a class that is neither labelled nor predicted it is nan.
    """
    right = counts[..., RIGHT, :].astype(float)
    union = counts[..., PREDICTED, :] + counts[..., LABELLED, :] - right
    return np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Returns the mean intersection over union (mIoU) from summed counts (..., 3, classes): (...).

    It is the mean over classes that are labelled or predicted somewhere, as torchmetrics' JaccardIndex has it: a class
    that is only predicted counts as 0.
    """
    return np.nanmean(class_ious(counts), axis=-1)


def pixel_accuracy(counts: np.ndarray) -> np.ndarray:
    """Returns the share of the pixels that are predicted right, from summed counts (..., 3, classes): (...)."""
    return counts[..., RIGHT, :].sum(-1) / counts[..., LABELLED, :].sum(-1)


def paired_images(
    score: Callable[[np.ndarray], np.ndarray],
    a: np.ndarray,
    b: np.ndarray,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Difference:
    """Returns the difference of a score of two models on the same images, with its percentile bootstrap interval.

    Images are drawn with replacement, the same for both models (Efron and Tibshirani, 1993), and both scores are
    computed from the sums over the drawn images: a mean of the images' own scores would be another score.

    Args:
        score: of summed counts (..., 3, classes), such as `mean_iou`.
        a: counts of the first model, (N, 3, classes).
        b: those of the second.
        seed: of the random draws; equal seeds give equal intervals.
        level: the confidence level, in (0, 1).
        resamples: how often N images are drawn.
    """
    n, shape = len(a), a.shape[1:]
    both = np.concatenate([a.reshape(n, -1), b.reshape(n, -1)], axis=1).astype(float)
    generator = np.random.default_rng(seed)
    differences = []
    chunk = max(1, 4_000_000 // max(n, both.shape[1]))  # keeps the draws and the sums within 32 MB each
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start))
        sums = (drawn @ both).reshape(-1, 2, *shape)
        differences.append(score(sums[:, 0]) - score(sums[:, 1]))
    low, high = np.quantile(np.concatenate(differences), [(1 - level) / 2, (1 + level) / 2])
    middle = score(a.sum(0)) - score(b.sum(0))
    return Difference(float(middle), float(low), float(high), None, n)
