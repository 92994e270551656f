#!/usr/bin/env python3
"""Trains a model from a settings file, tests it once at the end, and writes a run folder, runs/NAME.

  tools/train.py --cfg hybrid_merge.yaml model.merge.r=4 train.lr=5e-4 name=r4

Any setting can be overridden by section.key=value. With split.folds=5 five models are trained, each tested on a
different fifth of the images; split.fold=2 trains one of them. Ctrl-C saves the run; --resume continues it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING

from engine.cli import cli, parser_of
from models.settings import UserError

if TYPE_CHECKING:
    from engine.runs.folder import RunFolder


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--cfg", help="a YAML file, or its name under configs/, such as digits/hybrid")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="DIR",
        help="continue from the last checkpoint of the run folder DIR, or of the run that --cfg names",
    )
    parser.add_argument("--print", action="store_true", help="print all settings, with their defaults, and exit")
    parser.add_argument("--schema", metavar="FILE", help="write a JSON schema of the settings, for editors, and exit")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that override the file's, such as train.epochs=5; --print shows all of them",
    )
    args = parser.parse_intermixed_args(argv)
    if not (args.cfg or args.schema or isinstance(args.resume, str)):
        parser.error("give --cfg FILE, or --resume DIR")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.schema:
        from engine.files import write_text_atomic
        from engine.settings.schema import schema

        write_text_atomic(args.schema, json.dumps(schema(), indent=2) + "\n")
        return
    from engine.settings.layers import load_settings, to_yaml  # imports torch, which takes seconds

    stored = run_to_resume(args.resume) if isinstance(args.resume, str) else None
    settings = load_settings(args.cfg, args.overrides) if args.cfg else stored.settings_with(args.overrides)
    if args.print:
        print(to_yaml(settings), end="")
        return

    from engine.train.session import train

    train(settings, stored, resume=bool(args.resume), command=shlex.join(["tools/train.py", *argv]))


def run_to_resume(folder: str) -> RunFolder:
    """Returns the run folder that --resume names.

    Raises:
        UserError: training has not begun there.
    """
    from engine.runs.folder import RunFolder

    run = RunFolder(folder)
    if not run.is_run:
        name = run.settings_file.name
        raise UserError(f"--resume {run}: no run (no {name}); give the folder that training printed")
    return run


if __name__ == "__main__":
    sys.exit(cli(main))
