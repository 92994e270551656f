"""Whether two models differ by more than chance: tests and intervals for measurements that come in pairs.

Pairs are two models' predictions of the same image, or two settings' scores with the same seed. Pure functions on
arrays. A difference is always that of the first argument minus the second.

The two kinds of pairs answer two questions. Pairs of images ask whether these two trained models differ on new images.
Pairs of seeds ask whether the two settings differ when they are trained anew. A difference may be clear on the images
and still be smaller than the spread of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import fftconvolve
from scipy.stats import binom, binomtest, chi2, ttest_rel

LEVEL = 0.95  # of confidence
EXACT = 10_000  # largest number of images that only one model predicts right for which McNemar's test is exact
RESAMPLES = 10_000
SAME = 1e-12  # differences of scores closer than this are equal: fractions have rounding errors


@dataclass(frozen=True)
class McNemar:
    """The result of McNemar's test of two models on the same images.

    Attributes:
        only_a: number of images that only the first model predicts right.
        only_b: number of images that only the second model predicts right.
        p: two-sided p-value.
        exact: whether p is exact (binomial) or from the chi-square distribution.
    """

    only_a: int
    only_b: int
    p: float
    exact: bool


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval.

    Attributes:
        mean: the mean difference.
        low: lower bound of the interval; None where there is no interval.
        high: upper bound.
        p: two-sided p-value of no difference; None where the method has none.
        n: number of pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def mcnemar(a: ArrayLike, b: ArrayLike, exact: bool | None = None) -> McNemar:
    """Tests whether two models have the same accuracy on the images that both predicted (McNemar, 1947).

    Only images that one model predicts right and the other wrong count. If the models are equally accurate, each of
    them is as likely to be right for one as for the other. The exact test is binomial; for many such images the
    chi-square distribution with one degree of freedom and continuity correction is used, (|n_a - n_b| - 1)^2 /
    (n_a + n_b), as in statsmodels.

    Args:
        a: bool (N,), which images the first model predicts right.
        b: the same of the second model, for the same images in the same order.
        exact: whether to use the exact test; None: for up to EXACT images that count.
    """
    a, b = _outcomes(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count = only_a + only_b
    exact = count <= EXACT if exact is None else exact
    if count == 0:
        return McNemar(0, 0, 1.0, exact)
    if exact:
        return McNemar(only_a, only_b, float(binomtest(only_a, count).pvalue), exact)
    return McNemar(only_a, only_b, float(chi2.sf((abs(only_a - only_b) - 1) ** 2 / count, 1)), exact)


def sign_flips(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the p-value of an exact randomisation test of two models over images, where each has several seeds.

    The difference of an image is the number of seeds that predict it right, of the first model minus the second. If the
    models are equally accurate, each image's difference is as likely to have the other sign. The p-value is the
    probability that random signs give a sum at least as far from 0. With one seed this is McNemar's exact test. Unlike
    McNemar's test on all predictions together, it does not count the predictions of one image as independent.

    Args:
        a: bool (seeds, N) or (N,), which images are predicted right; or integers (N,), by how many seeds.
        b: the same of the second model.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind != "i" or a.shape != b.shape:
        a, b = _outcomes(a, b)
    differences = a.reshape(-1, a.shape[-1]).sum(0, dtype=np.int64) - b.reshape(-1, b.shape[-1]).sum(0, dtype=np.int64)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # Of `count` images with a difference of +-size, a binomial number k is positive: they sum to size (2 k - count).
    masses = np.ones(1)  # of the sums from -most to most in steps of 2
    for size, count in zip(sizes, counts):
        spaced = np.zeros(size * count + 1)
        spaced[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        masses = np.convolve(masses, spaced) if len(masses) < 1000 else fftconvolve(masses, spaced).clip(min=0)
    most = int(sizes @ counts)
    sums = np.arange(-most, most + 1, 2)
    return min(1.0, float(masses[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Difference:
    """Returns the percentile bootstrap interval of a mean difference over pairs (Efron and Tibshirani, 1993).

    The pairs are drawn with replacement, so that what is difficult for both models stays together.

    Args:
        a: (N,) or (seeds, N), bool or numbers; over seeds the mean of each image is taken first.
        b: the same of the second model.
        seed: of the random draws; equal seeds give equal intervals.
        level: the confidence level, in (0, 1).
        resamples: how often N pairs are drawn.
    """
    differences = _means(a) - _means(b)
    n = len(differences)
    # Drawing N pairs is drawing how often each value of the difference occurs, which is multinomial.
    values, counts = np.unique(differences.round(12), return_counts=True)
    generator, means = np.random.default_rng(seed), []
    chunk = max(1, 4_000_000 // len(values))  # keeps the counts within 32 MB
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(n, counts / n, size=min(chunk, resamples - start))
        means.append(drawn @ values / n)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high), None, n)


def paired_seeds(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Difference:
    """Returns Student's interval of the mean difference over seeds, and the p-value of the paired t-test.

    It assumes that the differences are independent and about normally distributed. For folds they are not independent,
    since any two folds share training images: there the interval is too narrow (Bengio and Grandvalet, 2004).

    With one pair, or with equal differences, there is no interval and no p-value: such differences say nothing about
    their spread, and scores of few images are often equal by chance.

    Args:
        a: the scores of the first row, one for each seed.
        b: the scores of the second row, for the same seeds in the same order.
        level: the confidence level, in (0, 1).
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} scores: must be pairs")
    differences = np.asarray(a, float) - np.asarray(b, float)
    middle, n = float(differences.mean()), len(differences)
    if n < 2 or np.ptp(differences) < SAME:
        return Difference(middle, None, None, None, n)
    test = ttest_rel(a, b)
    interval = test.confidence_interval(level)
    return Difference(middle, float(interval.low), float(interval.high), float(test.pvalue), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm, 1979).

    If those below a level are called differences, the probability that any of them is none is at most this level.

    Args:
        p_values: of any tests, in [0, 1].
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _outcomes(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != bool or b.dtype != bool or not a.size:
        raise ValueError(f"{a.dtype} {a.shape} and {b.dtype} {b.shape}: must be bool, for the same images")
    return a, b


def _means(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    return values.reshape(-1, values.shape[-1]).mean(0)
