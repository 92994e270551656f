"""How far an accuracy can be trusted: intervals for what was measured, and for images that nobody has seen yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev, variance

from scipy.special import ndtri, stdtrit

LEVEL = 0.95
UNSEEN = 1000  # new images that the prediction interval of folds is for


def wilson(correct: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval for the accuracy behind `correct` of `n` images (Wilson, 1927).

    The values p that a test of size 1 - level does not reject: |correct / n - p| <= z sqrt(p (1 - p) / n). Unlike the
    interval of the normal approximation it lies within [0, 1] and has a width at 0 and n right ones, and its coverage
    is near the level from some ten images on (Brown, Cai and DasGupta, 2001). It is of one model, and supposes that the
    images are drawn one by one from those that the accuracy is meant for; how another training would have turned out
    it does not say.

    Args:
        correct: images that are right, 0 to n.
        n: images, 1 or more.
        level: of confidence, in (0, 1).

    Returns:
        Lower and upper bound, fractions.
    """
    assert 0 <= correct <= n and n > 0, (correct, n)
    z = _normal(level)
    middle = (correct + z * z / 2) / (n + z * z)
    half = z * math.sqrt(correct * (n - correct) / n + z * z / 4) / (n + z * z)
    # At the ends the bound is exact; rounding would leave 1e-17 or 1 - 1e-16 there.
    return 0.0 if correct == 0 else max(0.0, middle - half), 1.0 if correct == n else min(1.0, middle + half)


def mean_interval(
    accuracies: Sequence[float], sizes: Sequence[int] | None = None, level: float = LEVEL
) -> tuple[float, float]:
    """Student's interval for the mean accuracy behind those of K folds: mean -+ t_{K-1} s / sqrt(K).

    s is the sample standard deviation. Where `sizes` are known the interval is never narrower than all N images allow,
    mean -+ z sqrt(p (1 - p) / N), p as in `prediction_interval`: K equal accuracies are no proof. It supposes that the
    folds' accuracies are independent and about normal. Their test images are disjoint, but any two of them train on
    mostly the same images, so that they are correlated and s is somewhat too small; no unbiased estimate exists (Bengio
    and Grandvalet, 2004).

    Args:
        accuracies: fractions, of two folds or more.
        sizes: test images of each fold; None where the accuracies are no shares of images, as average precision is.
        level: of confidence, in (0, 1).

    Returns:
        Lower and upper bound, cut to [0, 1].
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
    """Where the accuracy on `unseen` new images will lie, of one more model trained as those of the K folds were.

    mean -+ sqrt(t^2 s^2 / K  +  t^2 b  +  z^2 p (1 - p) / unseen), three parts that are independent of each other:

    - the mean is known to within t_{K-1} s / sqrt(K), and never better than all N images of the folds allow, which is
      z sqrt(p (1 - p) / N): K equal accuracies are no proof;
    - models differ: b = s^2 less the part that sampling its own test images gives a fold's accuracy, the mean of
      p (1 - p) / n_k, and at least 0; it is estimated from K numbers, hence t;
    - the new images are a sample themselves.

    p is the mean drawn a little towards 1/2, (N mean + z^2 / 2) / (N + z^2), as in Wilson's interval (Agresti and
    Coull, 1998), so that folds without a mistake do not promise a score without one.

    Assumptions: the new images are like those of the folds, none is a copy of one that trained, and what
    `mean_interval` supposes. In simulations with five folds of 200 images the interval for 1,000 new ones holds the
    accuracy in 96 to 98 of 100 cases while models differ by a standard deviation of up to one point, and in 90 where
    they differ by three.

    Its bias: a fold's model trains on (K - 1) / K of the images; a model trained on all of them, or the ensemble of the
    folds, tends to be better than the interval says, so that it is pessimistic. If settings were chosen by these same
    accuracies, the choice makes it optimistic, by more the more settings were tried.

    Args:
        accuracies: fractions, of two folds or more.
        sizes: test images of each fold.
        unseen: new images, 1 or more.
        level: of confidence, in (0, 1).

    Returns:
        Lower and upper bound, cut to [0, 1].
    """
    assert len(accuracies) == len(sizes) > 1 and min(sizes) > 0 and unseen > 0, (accuracies, sizes, unseen)
    total, z, student = sum(sizes), _normal(level), _student(level, len(accuracies))
    middle = mean(accuracies)
    sampling = _sampling(middle, total, z)
    of_mean = max((student * _error_of_mean(accuracies)) ** 2, z * z * sampling / total)
    between = max(0.0, variance(accuracies) - mean(sampling / size for size in sizes))
    half = math.sqrt(of_mean + student**2 * between + z * z * sampling / unseen)
    return max(0.0, middle - half), min(1.0, middle + half)


def spread(accuracies: Sequence[float], sizes: Sequence[int], counted: bool = True) -> dict:
    """The mean of folds' accuracies, fractions, its spread and intervals, and the accuracy of all images.

    Args:
        accuracies: of two folds or more.
        sizes: test images of each.
        counted: whether they are shares of images; average precision is none, and what counts images is then None.
    """
    found = {
        "images": sum(sizes),
        "mean": mean(accuracies),
        "std": stdev(accuracies),
        "interval": list(mean_interval(accuracies, sizes if counted else None)),
        "pooled": None,
        "unseen": None,
    }
    if counted:
        correct = sum(round(accuracy * size) for accuracy, size in zip(accuracies, sizes, strict=True))
        bounds = list(wilson(correct, sum(sizes)))
        found["pooled"] = {"accuracy": correct / sum(sizes), "correct": correct, "interval": bounds}
        found["unseen"] = {"images": UNSEEN, "interval": list(prediction_interval(accuracies, sizes, UNSEEN))}
    return found


def spread_lines(found: dict) -> list[str]:
    """What `spread` found, for the terminal."""
    lines = [
        f"mean            {100 * found['mean']:.2f} ± {100 * found['std']:.2f} %  (standard deviation; 95 % "
        f"interval of the mean {percent(found['interval'])} %)"
    ]
    if found["pooled"]:
        pooled, unseen = found["pooled"], found["unseen"]
        lines += [
            f"all images      {100 * pooled['accuracy']:.2f} %  ({pooled['correct']} of {found['images']}; 95 % "
            f"interval {percent(pooled['interval'])} %)",
            f"{unseen['images']:,} new images expect {percent(unseen['interval'])} %  (95 % prediction interval)",
        ]
    return lines


def percent(interval: Sequence[float]) -> str:
    """An interval of fractions in words."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _normal(level: float) -> float:
    assert 0 < level < 1, level
    return float(ndtri((1 + level) / 2))


def _student(level: float, count: int) -> float:
    assert 0 < level < 1, level
    return float(stdtrit(count - 1, (1 + level) / 2))


def _sampling(middle: float, total: int, z: float) -> float:
    """The variance that one image has by chance: p (1 - p), p drawn towards 1/2; see prediction_interval."""
    p = (total * middle + z * z / 2) / (total + z * z)
    return p * (1 - p)


def _error_of_mean(accuracies: Sequence[float]) -> float:
    return math.sqrt(variance(accuracies) / len(accuracies))
