"""The end of a run's log, for runs in this process."""

import logging


def end_log() -> None:
    """Takes the terminal's handler and log.txt's off: what comes after would be written to them."""
    log = logging.getLogger("hybridmerge")
    while log.handlers:
        log.handlers[0].close()
        log.removeHandler(log.handlers[0])
