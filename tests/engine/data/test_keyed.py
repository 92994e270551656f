import numpy as np

from engine.data.keyed import hash64, permutation, uniform


def test_reference_values_of_splitmix64():
    # the first three outputs of Vigna's splitmix64.c from seed 1234567, each a function of the counter alone
    gamma = 0x9E3779B97F4A7C15
    counters = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert hash64(counters).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_part_of_the_key_matters_and_nothing_else():
    index = np.arange(1000)
    assert (hash64(1, 2, index)[500:] == hash64(1, 2, index[500:])).all()
    for other in (hash64(1, 3, index), hash64(2, 2, index), hash64(2, 1, index), hash64(1, 2, index, 0)):
        assert not (hash64(1, 2, index) == other).any()
    assert hash64(-1, 2**80 + 7).shape == (1,)


def test_uniform_is_uniform_and_uncorrelated():
    draws = uniform(0, 5, np.arange(40_000)[:, None], np.arange(4))
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in draws.T])
    chi_square = ((counts - 2000) ** 2 / 2000).sum(1)
    assert (chi_square < 50).all()  # 19 degrees of freedom: beyond 50 once in 8,000
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02


def test_permutation_has_everything_once():
    order = permutation(1000, 3, 0)
    assert sorted(order) == list(range(1000))
    assert (order == permutation(1000, 3, 0)).all() and not (order == permutation(1000, 3, 1)).all()
