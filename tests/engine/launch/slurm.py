"""Stand-ins for the commands of Slurm, for tests of what is submitted."""

from __future__ import annotations

import os
import time

import pytest

SBATCH = """#!/bin/sh
cat "$1" >> {log}
echo "Submitted batch job 77"
"""
SACCT = "#!/bin/sh\nprintf 'JobID|State|NodeList\\n77_0|RUNNING|n1\\n77_1|PENDING|n1\\n77_2|FAILED|n1\\n'\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands; returns the file with what sbatch was given."""
    programs, log = tmp_path / "bin", tmp_path / "sbatch.txt"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(log=log), "srun": "#!/bin/sh\n", "sacct": SACCT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return log


def until(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()
