"""Marks for tests of which some cases stand for the others in `make test`; `make test-all` runs all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: Sequence[Any]) -> list[Any]:
    """Returns the cases of a parametrised test, all but the quick ones marked slow.

    Args:
        cases: the cases; tuples where a test has several parameters.
        quick: those of them that `make test` runs.

    Raises:
        AssertionError: a quick case is none of them.
    """
    cases = list(cases)
    assert all(case in cases for case in quick), quick
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*value, marks=[] if case in quick else pytest.mark.slow)
        for case, value in zip(cases, values, strict=True)
    ]
