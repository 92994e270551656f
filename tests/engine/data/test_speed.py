import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench import parse

BENCH = Path(__file__).parents[3] / "tools" / "bench.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True, timeout=120)


def test_the_pipeline_is_faster_than_any_model_here_needs():
    done = bench("--data", "--repeats", "2")
    assert done.returncode == 0, done.stderr
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", done.stdout).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert low <= median <= high
    assert high >= 20_000  # the better of two, because a test machine may be busy


@pytest.mark.parametrize("option, value", [("--batch-size", "0"), ("--batch-size", "50001"), ("--repeats", "-1")])
def test_a_wrong_argument_is_one_line(capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        parse(["--data", option, value])
    assert f"{option} {value}: must be from 1" in capsys.readouterr().err.splitlines()[-1]
