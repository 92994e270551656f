"""Confidence intervals of measured accuracies, and prediction intervals for new images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev, variance

from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

from engine.runs.records.folds_report import Pooled, Spread, Unseen

LEVEL = 0.95  # of confidence
UNSEEN = 1000  # number of new images for which folds report a prediction interval


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the score interval (Wilson, 1927) of an accuracy.

    It holds the accuracies p that a test of size 1 - level does not reject: |correct / n - p| <= z sqrt(p (1 - p) / n).
    Unlike the normal approximation it stays within [0, 1], has a width even if no image or every image is right, and
    covers the true accuracy about as often as the level says for ten or more images (Brown, Cai and DasGupta, 2001).
    It describes a single model and assumes independently drawn images; it does not say how much the accuracy varies
    from one training run to the next.

    Args:
        correct: number of correctly predicted images, 0 to n.
        n: number of images, 1 or more.
        level: the confidence level, in (0, 1).

    Returns:
        Lower and upper bound, fractions.
    """
    bounds = binomtest(correct, n).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def mean_interval(
    accuracies: Sequence[float], sizes: Sequence[int] | None = None, level: float = LEVEL
) -> tuple[float, float]:
    """Returns Student's interval for the mean accuracy of K folds: mean -+ t_{K-1} s / sqrt(K).

    s is the sample standard deviation. With `sizes` the interval is never narrower than the number N of all test images
    allows, mean -+ z sqrt(p (1 - p) / N) with p as in `prediction_interval`: K folds may have equal accuracies by
    chance. It assumes that the folds' accuracies are independent and about normally distributed. Their test images are
    disjoint, but any two folds share most of their training images, so that their accuracies are correlated and s is
    somewhat too small; no unbiased estimate exists (Bengio and Grandvalet, 2004).

    Args:
        accuracies: fractions, of two folds or more.
        sizes: number of test images of each fold; None for metrics that are not fractions of images, such as average
            precision.
        level: the confidence level, in (0, 1).

    Returns:
        Lower and upper bound, clipped to [0, 1].
    """
    assert len(accuracies) > 1, "one accuracy has no spread"
    middle, half = mean(accuracies), _student(level, len(accuracies)) * _error_of_mean(accuracies)
    if sizes is not None:
        total, z = sum(sizes), _normal(level)
        half = max(half, z * math.sqrt(_sampling(middle, total, z) / total))
    return max(0.0, middle - half), min(1.0, middle + half)


def prediction_interval(
    accuracies: Sequence[float], sizes: Sequence[int], unseen: int, level: float = LEVEL
) -> tuple[float, float]:
    """Returns the interval for the accuracy of another model, trained like those of K folds, on new images.

    mean -+ sqrt(t^2 s^2 / K  +  t^2 b  +  z^2 p (1 - p) / unseen), with one term for each of three independent sources
    of error:

    - the mean is known to within t_{K-1} s / sqrt(K), but not better than the number N of all test images allows,
      z sqrt(p (1 - p) / N): K folds may have equal accuracies by chance;
    - models differ: b is s^2 minus what the sampling of its own test images contributes to a fold's accuracy, the mean
      of p (1 - p) / n_k, and at least 0; it is estimated from K numbers, hence t;
    - the new images are a sample as well.

    p is the mean shrunk towards 1/2, (N mean + z^2 / 2) / (N + z^2), as in Wilson's interval (Agresti and Coull, 1998),
    so that folds without a mistake do not predict new images without one.

    Assumptions: the new images are like those of the folds, none is a copy of a training image, and those of
    `mean_interval`. In simulations with five folds of 200 images, the interval for 1,000 new images contains their
    accuracy in 96 to 98 % of the cases if models differ by a standard deviation of up to one percentage point, and in
    90 % if they differ by three.

    Bias: a fold's model is trained on (K - 1) / K of the images. A model trained on all of them, or the ensemble of the
    folds, tends to be better, so that the interval is pessimistic. If settings were selected by these same accuracies,
    it is optimistic, the more so the more settings were tried.

    Args:
        accuracies: fractions, of two folds or more.
        sizes: number of test images of each fold.
        unseen: number of new images, 1 or more.
        level: the confidence level, in (0, 1).

    Returns:
        Lower and upper bound, clipped to [0, 1].
    """
    assert len(accuracies) == len(sizes) > 1 and min(sizes) > 0 and unseen > 0, (accuracies, sizes, unseen)
    total, z, student = sum(sizes), _normal(level), _student(level, len(accuracies))
    middle = mean(accuracies)
    sampling = _sampling(middle, total, z)
    of_mean = max((student * _error_of_mean(accuracies)) ** 2, z * z * sampling / total)
    between = max(0.0, variance(accuracies) - mean(sampling / size for size in sizes))
    half = math.sqrt(of_mean + student**2 * between + z * z * sampling / unseen)
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(accuracies: Sequence[float], sizes: Sequence[int], *, counted: bool = True) -> Spread:
    """Summarises the accuracies of folds: mean, standard deviation, intervals, and the accuracy of all images together.

    Args:
        accuracies: fractions, of two folds or more.
        sizes: number of test images of each fold.
        counted: whether the accuracies are fractions of correctly predicted images. If not, as for average precision,
            `pooled` and `unseen` are None.

    """
    total, pooled, unseen = sum(sizes), None, None
    if counted:
        correct = sum(round(accuracy * size) for accuracy, size in zip(accuracies, sizes, strict=True))
        pooled = Pooled(accuracy=correct / total, correct=correct, interval=wilson(correct, total))
        unseen = Unseen(images=UNSEEN, interval=prediction_interval(accuracies, sizes, UNSEEN))
    of_mean = mean_interval(accuracies, sizes if counted else None)
    return Spread(
        images=total, mean=mean(accuracies), std=stdev(accuracies), interval=of_mean, pooled=pooled, unseen=unseen
    )


def spread_lines(spread: Spread) -> list[str]:
    """Returns how the scores of folds vary as lines for the terminal."""
    lines = [
        f"mean            {100 * spread.mean:.2f} ± {100 * spread.std:.2f} %  (standard deviation; 95 % "
        f"interval of the mean {percent(spread.interval)} %)"
    ]
    if pooled := spread.pooled:
        lines.append(
            f"all images      {100 * pooled.accuracy:.2f} %  ({pooled.correct} of {spread.images}; 95 % "
            f"interval {percent(pooled.interval)} %)"
        )
    if unseen := spread.unseen:
        lines.append(f"{unseen.images:,} new images expect {percent(unseen.interval)} %  (95 % prediction interval)")
    return lines


def percent(interval: Sequence[float]) -> str:
    """Returns an interval of fractions in percent, such as "83.1 to 86.4"."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _normal(level: float) -> float:
    assert 0 < level < 1, level
    return float(ndtri((1 + level) / 2))


def _student(level: float, count: int) -> float:
    assert 0 < level < 1, level
    return float(stdtrit(count - 1, (1 + level) / 2))


def _sampling(middle: float, total: int, z: float) -> float:
    """Returns the variance of one image, p (1 - p), with p shrunk towards 1/2; see prediction_interval."""
    p = (total * middle + z * z / 2) / (total + z * z)
    return p * (1 - p)


def _error_of_mean(accuracies: Sequence[float]) -> float:
    return math.sqrt(variance(accuracies) / len(accuracies))
