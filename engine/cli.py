"""Runs the command-line tools: turns errors into exit codes, and reports a user's mistake on one line."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.settings import UserError


def parser_of(description: str | None, example: str | None = None) -> argparse.ArgumentParser:
    """Returns the argument parser of a tool, whose help shows the tool's docstring and one example as they are."""
    return _Parser(description=description, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter)


class _Parser(argparse.ArgumentParser):
    """A parser that refuses empty paths: they come from unset shell variables, and Path("") is the current folder."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, _nonempty_path)  # for every type=Path, in subcommands as well


def _nonempty_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give the name of a file or folder")
    return Path(text)


def add_runs(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds `--run DIR`, which may be given several times; `purpose` says what several runs are used for."""
    help_text = f"a run folder, or a folder of all folds; give it several times to {purpose}"
    parser.add_argument("--run", type=Path, required=True, action="append", metavar="DIR", help=help_text)


def cli(main: Callable[[list[str]], None]) -> int:
    """Runs a tool on the command-line arguments.

    Args:
        main: the tool's main function, called with the arguments without the program's name.

    Returns:
        The exit code: 0; 2 for a UserError, which is printed as one line on stderr; 130 for Ctrl-C; 141 if the
        program that reads our output has closed the pipe. All other exceptions are bugs and propagate with their
        traceback.
    """
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tools.start left it to the system
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names and "±" where the terminal's encoding lacks them
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


def take_overrides(args: argparse.Namespace, *options: str) -> argparse.Namespace:
    """Moves `section.key=value` out of list options and into `args.overrides`.

    argparse cannot know where a list ends: in `--images a.jpg b.jpg merge.r=4` it takes the override for another image.
    A value with "=" that is an existing file stays in its list.

    Args:
        args: parsed arguments, changed and returned; `overrides` is a list.
        options: names of the list options; one that was not given becomes an empty list.
    """
    for option in options:
        values = getattr(args, option) or []
        taken = [value for value in values if "=" in str(value) and not Path(value).exists()]
        setattr(args, option, [value for value in values if value not in taken])
        args.overrides = [*args.overrides, *map(str, taken)]
    return args
