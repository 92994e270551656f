"""What holds for every test."""

import pytest

from tests.quiet import end_log


@pytest.fixture(autouse=True)
def log_ended():
    """A run that a test made in this process leaves no handler: it would write to a stream that is closed by then, and
    logging would say so on the stderr of another test."""
    yield
    end_log()
