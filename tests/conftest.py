"""What holds for every test."""

import os

import pytest

from tests.quiet import end_log

# The same numbers on every machine: `auto` would mean bf16 on processors that have it. Set the variable to bf16 to run
# the suite in it, on any processor.
os.environ.setdefault("HYBRIDMERGE_PRECISION", "fp32")


@pytest.fixture(autouse=True)
def log_ended():
    """A run that a test made in this process leaves no handler: it would write to a stream that is closed by then, and
    logging would say so on the stderr of another test."""
    yield
    end_log()
