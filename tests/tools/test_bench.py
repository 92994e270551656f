"""The benchmark runs and says what it measured; how fast is for benchmarks, not for tests."""

import re

import pytest
import torch

from tools import bench


@pytest.fixture
def threads():
    """The benchmark sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_data(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", 1000)
    bench.main(["--data", "--repeats", "2"])
    line = capsys.readouterr().out.splitlines()[-1]
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", line).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert 0 < low <= median <= high


def test_attention(threads, capsys, monkeypatch):
    monkeypatch.setattr(bench, "HEADS", ((1, 1, 4, 8),))
    bench.main(["--attention", "--repeats", "1"])
    assert capsys.readouterr().out.count("median") == len(bench.ATTENTIONS) == 3


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--batch-size", "50001"), ("--repeats", "-1")])
def test_a_wrong_argument_is_one_line(capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--data", option, value])
    assert f"{option} {value}: must be from 1" in capsys.readouterr().err.splitlines()[-1]
