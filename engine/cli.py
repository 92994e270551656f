"""Runs a tool: exit codes, and errors on one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from models.settings import UserError


def cli(main: Callable[[list[str]], None]) -> int:
    """Runs a tool on the command line's arguments and returns its exit code.

    0; 2 for a user's mistake, said in one line on stderr; 130 for Ctrl-C; 141 if whoever reads stdout has gone.
    Everything else is a bug and keeps its traceback.
    """
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tools switch it off while they import
    try:
        try:
            main(sys.argv[1:])
        except UserError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a closed pipe shows here, not when Python exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
        code = code or 141
    return code
