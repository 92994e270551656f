import re

import pytest
import torch

from tools.bench import main


@pytest.fixture
def threads():
    """The benchmark sets torch's threads for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_pipeline_is_faster_than_any_model_here_needs(threads, capsys):
    main(["--data", "--repeats", "2"])
    line = capsys.readouterr().out.splitlines()[-1]
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", line).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert low <= median <= high
    assert high >= 20_000  # the better of two, because a test machine may be busy


@pytest.mark.parametrize("option, value", [("--batch-size", "0"), ("--batch-size", "50001"), ("--repeats", "-1")])
def test_a_wrong_argument_is_one_line(capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        main(["--data", option, value])
    assert f"{option} {value}: must be from 1" in capsys.readouterr().err.splitlines()[-1]
