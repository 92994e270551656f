"""Intervals: published values, the equation that defines them, and how often they hold what they promise."""

import numpy as np
import pytest
from scipy.stats import binomtest

from engine.measure.intervals import mean_interval, prediction_interval, wilson


@pytest.mark.parametrize(
    "correct, n, low, high",
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("correct, n", [(0, 1), (1, 1), (3, 7), (755, 1000), (999, 1000), (10000, 10000)])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_is_scipys_and_mirrors(correct, n, level):
    low, high = wilson(correct, n, level)
    theirs = binomtest(correct, n).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= correct / n <= high <= 1
    assert wilson(n - correct, n, level) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_the_mean_of_folds_by_hand():
    low, high = mean_interval([0.70, 0.72, 0.74])  # s = 0.02, t_2 = 4.302653
    assert (low, high) == pytest.approx((0.72 - 4.302653 * 0.02 / 3**0.5, 0.72 + 4.302653 * 0.02 / 3**0.5), abs=1e-7)
    assert mean_interval([0.9, 1.0])[1] == 1.0 and mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_equal_folds_are_no_proof_of_their_mean():
    low, high = mean_interval([0.8] * 5, [200] * 5)
    assert (low, high) == pytest.approx((0.8 - 0.0248, 0.8 + 0.0248), abs=2e-4)  # 1.96 sqrt(0.8 * 0.2 / 1000)
    assert 0.99 < mean_interval([1.0] * 5, [200] * 5)[0] < 1
    assert mean_interval([0.7, 0.72, 0.74], [1000] * 3) == mean_interval([0.7, 0.72, 0.74])  # wider already


def covered(k: int, n: int, p: float, spread: float, unseen: int, runs: int = 1500) -> float:
    """How often the interval holds the accuracy of one more model, where models' accuracies have this spread."""
    generator = np.random.default_rng(0)
    true = np.clip(generator.normal(p, spread, (runs, k + 1)), 0, 1)
    folds = generator.binomial(n, true[:, :k]) / n
    new = generator.binomial(unseen, true[:, k]) / unseen
    bounds = [prediction_interval(row, [n] * k, unseen) for row in folds.tolist()]
    return float(np.mean([low <= accuracy <= high for (low, high), accuracy in zip(bounds, new)]))


@pytest.mark.parametrize(
    "k, n, p, spread, unseen, least",
    [
        (5, 200, 0.80, 0.00, 1000, 0.95),
        (5, 200, 0.80, 0.01, 1000, 0.95),
        (5, 200, 0.80, 0.03, 1000, 0.88),
        (5, 20, 0.90, 0.00, 100, 0.95),
        (10, 100, 0.99, 0.00, 1000, 0.95),
    ],
)
def test_the_prediction_interval_holds_what_it_promises(k, n, p, spread, unseen, least):
    assert least <= covered(k, n, p, spread, unseen) < 0.995  # nor is it so wide that it says nothing


def test_what_widens_a_prediction_interval():
    def width(accuracies, size=200, unseen=1000):
        low, high = prediction_interval(accuracies, [size] * len(accuracies), unseen)
        return high - low

    calm, wild = [0.79, 0.80, 0.80, 0.80, 0.81], [0.70, 0.75, 0.80, 0.85, 0.90]
    assert width(wild) > width(calm) > width(calm, unseen=100_000)
    assert width(calm, unseen=100) > width(calm)
    assert width([0.8] * 5) > 0.05  # equal accuracies are no proof
    low, high = prediction_interval([1.0] * 5, [200] * 5, 1000)
    assert 0.98 < low < 1.0 == high
    assert prediction_interval([0.0] * 5, [200] * 5, 1000)[0] == 0.0
