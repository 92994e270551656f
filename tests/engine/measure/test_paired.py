"""Paired tests and intervals, against scipy and statsmodels on made-up rows."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp, ttest_rel
from scipy.stats import permutation_test as permutations
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels
from statsmodels.stats.multitest import multipletests

from engine.measure.paired import EXACT, holm, mcnemar, paired_bootstrap, paired_seeds, sign_flips


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_a, only_b, neither)
    a, b = (np.repeat(np.array(right), counts) for right in ([True, True, False, False], [True, False, True, False]))
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


@pytest.mark.parametrize("counts", [(50, 7, 2, 1), (0, 1, 0, 0), (10, 4, 4, 3), (300, 120, 81, 20), (9, 0, 30, 1)])
def test_mcnemar_is_that_of_statsmodels(counts):
    a, b = outcomes(*counts)
    table = [[counts[0], counts[1]], [counts[2], counts[3]]]
    for exact in (True, False):
        test = mcnemar(a, b, exact=exact)
        assert (test.only_a, test.only_b, test.exact) == (counts[1], counts[2], exact)
        assert test.p == pytest.approx(of_statsmodels(table, exact=exact, correction=True).pvalue, rel=1e-9)
    assert mcnemar(a, b) == mcnemar(a, b, exact=True)


def test_mcnemar_of_many_images_and_of_equal_outcomes():
    a, b = outcomes(100, EXACT // 2 + 300, EXACT // 2, 0)
    test = mcnemar(a, b)
    assert not test.exact and 0 < test.p < 0.01
    assert test.p == pytest.approx(mcnemar(a, b, exact=True).p, rel=0.01)
    assert mcnemar(a, a).p == 1.0 == sign_flips(a, a)


@pytest.mark.parametrize("a, b", [([True], [True, False]), ([1, 0], [0, 1]), ([], [])])
def test_outcomes_of_other_images_are_refused(a, b):
    with pytest.raises(ValueError, match="must be bool, for the same images"):
        mcnemar(a, b)
    with pytest.raises(ValueError, match="must be bool, for the same images"):
        sign_flips(np.array(a, float), b)


@given(st.integers(0, 60), st.integers(0, 60))
def test_flipped_signs_of_one_seed_are_mcnemar(only_a, only_b):
    a, b = outcomes(5, only_a, only_b, 5)
    assert sign_flips(a, b) == pytest.approx(mcnemar(a, b, exact=True).p, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_flipped_signs_of_several_seeds_are_scipys_permutations(seed):
    a, b = np.random.default_rng(seed).random((2, 3, 9)) < np.array([0.8, 0.5])[:, None, None]
    differences = a.sum(0) - b.sum(0)

    def total(x, y, axis):
        return (x - y).sum(axis)

    exact = permutations((differences, np.zeros(9)), total, permutation_type="samples", n_resamples=np.inf, axis=-1)
    assert sign_flips(a, b) == pytest.approx(exact.pvalue)


def test_flipped_signs_of_many_images_are_a_t_test():
    """Where the distribution of the sum is close to normal; through the fast convolution."""
    generator = np.random.default_rng(1)
    a, b = generator.random((5, 20_000)) < 0.702, generator.random((5, 20_000)) < 0.697
    expected = ttest_1samp(a.sum(0) - b.sum(0), 0).pvalue
    assert 1e-6 < expected < 0.2
    assert sign_flips(a, b) == pytest.approx(expected, rel=0.03)


def test_the_bootstrap_is_scipys():
    a, b = outcomes(200, 40, 21, 50)
    mine = paired_bootstrap(a, b, seed=3)
    assert mine.mean == pytest.approx((40 - 21) / 311) and mine.n == 311 and mine.p is None

    def difference(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    data = (a.astype(float), b.astype(float))
    options = {"paired": True, "method": "percentile", "n_resamples": 10_000}
    theirs = bootstrap(data, difference, **options, rng=np.random.default_rng(0)).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert mine == paired_bootstrap(a, b, seed=3)
    assert len({paired_bootstrap(a, b, seed=seed, resamples=20) for seed in range(5)}) > 1
    narrow = paired_bootstrap(a, b, seed=3, level=0.5)
    assert mine.low < narrow.low < mine.mean < narrow.high < mine.high


def test_the_bootstrap_takes_images_and_not_predictions_as_independent():
    a, b = outcomes(200, 40, 21, 50)
    once, thrice = paired_bootstrap(a, b), paired_bootstrap(np.tile(a, (3, 1)), np.tile(b, (3, 1)))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high)) and thrice.n == 311


def test_seeds_are_scipys_paired_t_test():
    a, b = [0.91, 0.93, 0.90, 0.94], [0.90, 0.90, 0.89, 0.925]
    found, test = paired_seeds(a, b), ttest_rel(a, b)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b)) and found.n == 4
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    back = paired_seeds(b, a)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_seeds_without_a_spread_have_no_p_value():
    for a, b in (([0.9], [0.8]), ([0.9, 0.7], [0.8, 0.6]), ([0.1 + 0.2, 0.9], [0.3, 0.9])):
        found = paired_seeds(a, b)
        assert (found.low, found.high, found.p) == (None, None, None)
        assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    with pytest.raises(ValueError, match="must be pairs"):
        paired_seeds([0.5], [0.5, 0.6])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_that_of_statsmodels(values):
    with patch("gc.collect"):  # called for each list; each takes most of a second
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
