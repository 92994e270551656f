"""Runs the command-line tools: turns errors into exit codes, and reports a user's mistake on one line."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

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


def parse_comparison(
    argv: list[str], description: str | None, folder: str, example: str, *, fits: Sequence[str] = ()
) -> argparse.Namespace:
    """Parses the arguments of a tool that compares ways of merging in a pretrained model.

    Args:
        argv: the arguments.
        description: the tool's docstring.
        folder: the folder under configs/ that has its files.
        example: an override of a setting that it has.
        fits: what it can fit to the budgets of its rows.
    """
    parser = parser_of(description)
    parser.add_argument("--cfg", required=True, help=f"a YAML file, or its name under configs/{folder}/")
    if fits:
        parser.add_argument(
            "--fit", choices=fits, help="evaluate nothing: fit the budgets of all rows to some images, and print rows"
        )
        parser.add_argument("--images", type=int, metavar="N", help="for --fit: how many images, 256 if not given")
    parser.add_argument(
        "--time",
        type=int,
        metavar="ROUNDS",
        help="also measure ms per image of every row, in so many interleaved rounds; when nothing else runs",
    )
    parser.add_argument(
        "--again", action="store_true", help="evaluate rows anew that another version of the merging code evaluated"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help=f"settings that override the file's, such as {example} or model.weights=FILE",
    )
    args = parser.parse_intermixed_args(argv)
    if args.time is not None and args.time < 1:
        parser.error(f"--time {args.time}: must be at least 1")
    if fits and args.images is not None and (args.images < 1 or args.fit is None):
        parser.error(
            f"--images {args.images}: " + ("must be at least 1" if args.fit else "is for --fit; give that too")
        )
    if fits and args.fit and (args.again or args.time is not None):
        parser.error(f"{'--again' if args.again else '--time'}: not with --fit, which evaluates nothing; leave it out")
    return args


def cli(main: Callable[[list[str]], None]) -> int:
    """Runs a tool on the command-line arguments.

    Args:
        main: the tool's main function, called with the arguments without the program's name.

    Returns:
        The exit code: 0; 2 for a UserError, which is printed as one line on stderr, or if the output cannot be written;
        130 for Ctrl-C; 141 if the program that reads our output has closed the pipe. All other exceptions are bugs and
        propagate with their traceback.
    """
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tools.start left it to the system
    out, err = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(sys.argv[1:])
        except UserError as error:
            print("error:", " ".join(str(error).splitlines()), file=err)
            code = 2
        except KeyboardInterrupt:
            code = 130
        finally:
            out.flush()  # so that a closed pipe shows here, not when Python exits
            err.flush()
        if isinstance(out.failure, BrokenPipeError):
            code = code or 141
        elif out.failure and not code:  # otherwise one line is there already
            why = (out.failure.strerror or str(out.failure)).lower()
            print(f"error: the standard output cannot be written, {why}; files are complete", file=err)
            code = 2
    return code


class _Output(io.TextIOBase):
    """A standard stream on which printing never fails, so that no run is lost for a closed pipe or a full disk.

    Characters that the encoding lacks are escaped. After an error nothing more is written.

    Attributes:
        failure: the first error; None: there was none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.failure = stream, None
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # names and "±" where the terminal's encoding lacks them

    def write(self, text: str) -> int:
        if self._stream is not None:
            self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        return getattr(self._stream, "errors", None) or "strict"

    def _try(self, work: Callable[..., object], *arguments: str) -> None:
        """Calls a method of the stream, until one fails."""
        try:
            work(*arguments)
        except OSError as error:
            self.failure = self.failure or error
            with suppress(OSError):  # Python writes once more what is left as it exits
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


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
