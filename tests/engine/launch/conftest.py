"""A run of one process, with which those of several are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.launch.runs import config
from tests.processes import finish


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Path:
    """The hybrid, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = finish("train.py", "--cfg", config(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "together"
