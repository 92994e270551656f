"""What holds for every test."""

import gc
import os
import signal

import pytest

from tests.quiet import end_log

# The same numbers on every machine: `auto` would mean bf16 on processors that have it. Set the variable to bf16 to run
# the suite in it, on any processor.
os.environ.setdefault("HYBRIDMERGE_PRECISION", "fp32")

# The same signals too: a shell ignores SIGINT for what it starts in the background, and nohup ignores SIGHUP. A run
# that starts so goes on ignoring them, which is what the tests of stopping do not expect.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Nobody pulls the plug, so that no test can see what waits for the disk are for; they take a tenth of the time.
os.fsync = lambda descriptor: None

# Files that take the longest, of those without a test that is slow by itself.
LONG = (
    "test_budget.py",
    "test_commands.py",
    "test_damaged_checkpoints.py",
    "test_export.py",
    "test_finetuning.py",
    "test_trainer.py",
)

gc.disable()  # while tests are collected: what is imported and collected then stays


@pytest.fixture(autouse=True)
def log_ended():
    """A run that a test made in this process leaves no handler: it would write to a stream that is closed by then, and
    logging would say so on the stderr of another test."""
    yield
    end_log()


def pytest_collection_finish():
    """Garbage is not looked for again in millions of objects that stay: each time took most of a second.

    Tests import as many more. So garbage is looked for among all of them seldom; among the young ones, often enough.
    """
    import hypothesis  # noqa: F401, whose plugins ask who refers to an object, and frozen ones do not answer

    gc.freeze()
    gc.set_threshold(10_000, 10, 20)
    gc.enable()


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that no process is left alone with them when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow and item.path.name not in LONG)
