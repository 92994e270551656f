"""How a sweep is written."""

import pytest

from engine.study.sweep import parse_sweep
from models.settings import UserError


def test_what_a_sweep_is_over():
    assert parse_sweep("merge.r=[0, [1, 2]]") == ("merge.r", [0, [1, 2]])
    assert parse_sweep("merge={keep: {rate: [0.5]}}") == ("merge.keep.rate", [0.5])
    with pytest.raises(UserError):
        parse_sweep("merge={r: [1], method: [tome]}")
