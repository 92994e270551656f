import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[3] / "tools" / "bench.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, BENCH, *arguments], capture_output=True, text=True, timeout=120)


def test_the_pipeline_is_faster_than_any_model_here_needs():
    done = bench("--data", "--repeats", "3")
    assert done.returncode == 0, done.stderr
    low, median, high = (
        int(re.search(rf"{word} ([\d,]+)", done.stdout).group(1).replace(",", "")) for word in ("min", "median", "max")
    )
    assert low <= median <= high
    assert high >= 20_000  # the best of three, because a test machine may be busy


def test_a_wrong_argument_is_one_line():
    done = bench("--data", "--batch-size", "0")
    assert done.returncode == 2 and "--batch-size 0: must be from 1 to 50000" in done.stderr.splitlines()[-1]
