"""Random numbers that are functions of a key instead of a stream: SplitMix64 over counters, vectorised.

A key gives the same number in any order, batch and process and on every platform, so a run can stop anywhere and
resume exactly. The mixing function is that of SplitMix64 (Steele, Lea and Flood, 2014, "Fast Splittable Pseudorandom
Number Generators"; constants by Vigna).
"""

from __future__ import annotations

import numpy as np

SPLIT, ORDER, AUGMENT, MIX, BUDGET, TEST, DRAW, PLANT = range(8)  # purpose of a number: the first part of every key

_MASK = (1 << 64) - 1


def hash64(*key: int | np.ndarray) -> np.ndarray:
    """Returns a uniform uint64 for each key. The parts of the key are integers of any sign and size, and broadcast."""
    state = np.zeros(1, np.uint64)
    for part in key:
        part = np.uint64(part & _MASK) if isinstance(part, int) else part.astype(np.uint64)
        state = _splitmix(state + part)
    return state


def uniform(*key: int | np.ndarray) -> np.ndarray:
    """Returns a float64 in [0, 1) for each key, from the 53 upper bits of `hash64`."""
    return (hash64(*key) >> np.uint64(11)) * 2.0**-53


def permutation(length: int, *key: int) -> np.ndarray:
    """Returns a permutation of `length` items, int64 (length,)."""
    return np.argsort(hash64(*key, np.arange(length)), kind="stable")


def _splitmix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
