#!/usr/bin/env python3
"""Trains a model from a settings file, tests it once at the end, and writes a run folder, runs/NAME.

  tools/train.py --cfg hybrid_merge.yaml data.path=FOLDER train.lr=5e-4 name=slower

Any setting can be overridden by section.key=value. With split.folds=5 five models are trained, each tested on a
different fifth of the images; split.fold=2 trains one of them. Ctrl-C saves the run; --resume continues it.

  torchrun --standalone --nproc_per_node=2 tools/train.py --cfg digits/vit     # two processes train one run
  tools/train.py --cfg digits/vit --slurm partition=gpu time=4:00:00 gpus=1    # as a job of a cluster
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import cli, parser_of
from engine.launch.slurm import split_words
from models.settings import UserError

KEYS = ("name", "out", "seed", "device", "threads")  # settings without a section: no options of --slurm

if TYPE_CHECKING:
    from engine.launch.group import Group
    from engine.runs.folder import RunFolder
    from engine.settings.schema import RunSettings


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
    parser.add_argument(
        "--estimate", action="store_true", help="time a few steps, print how long the run would take, and exit"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --estimate: write its numbers as JSON")
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="OPTION=VALUE",
        help="submit the run, or each of its folds, to Slurm, with options such as partition=x time=4:00:00 gpus=8 "
        "processes=8; local: as jobs of this machine",
    )
    parser.add_argument("--schema", metavar="FILE", help="write a JSON schema of the settings, for editors, and exit")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that override the file's, such as train.epochs=5; --print shows all of them",
    )
    args = parser.parse_intermixed_args(argv)
    if args.slurm:
        args.slurm, settings = split_words(args.slurm, KEYS)
        args.overrides += settings
    if not (args.cfg or args.schema or isinstance(args.resume, str)):
        parser.error("give --cfg FILE, or --resume DIR")
    if args.json and not args.estimate:
        parser.error("--json: only with --estimate; a run writes its results into its folder")
    if args.slurm is not None and (args.estimate or args.print):
        parser.error("--slurm: submits the run; leave --estimate and --print out")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.schema:
        from engine.files import write_text_atomic
        from engine.settings.schema import schema

        write_text_atomic(args.schema, json.dumps(schema(), indent=2) + "\n")
        return
    from engine.launch.group import joined, said_once  # imports torch, which takes seconds
    from engine.settings.layers import load_settings, to_yaml

    with said_once():
        stored = run_to_resume(args.resume) if isinstance(args.resume, str) else None
        settings = load_settings(args.cfg, args.overrides) if args.cfg else stored.settings_with(args.overrides)
    if args.print:
        print(to_yaml(settings), end="")
        return
    if args.estimate:
        with joined(settings.device) as group:
            print_estimate(settings, args.json, group)
        return
    if args.slurm is not None:
        from engine.train.submission import submit

        for line in submit(settings, args.slurm, stored, resume=bool(args.resume)):
            print(line)
        return

    from engine.train.session import train

    command = shlex.join(["tools/train.py", *argv])
    with joined(settings.device) as group:
        train(settings, stored, resume=bool(args.resume), command=command, group=group)


def print_estimate(settings: RunSettings, file: Path | None, group: Group) -> None:
    """Times a few steps of a run, and prints how long it would take; all folds take as long as so many runs."""
    from engine.files import write_json_atomic
    from engine.runs.folds import of_fold
    from engine.train.estimate import estimate
    from engine.wording import counted, duration

    runs = settings.split.folds if settings.split.all_folds else 1
    found = estimate(of_fold(settings, 0) if settings.split.all_folds else settings, group)
    if not group.leads:
        return
    most = "at most " if found.kept_features else "about "
    processes = f", {found.processes} processes" if found.processes > 1 else ""
    folds = f", {counted(runs, 'fold')}" if runs > 1 else ""
    print(f"time            {most}{duration(runs * found.seconds)} on {found.device}{processes}{folds}")
    print(f"steps           {found.steps}, {1e3 * found.step_seconds:.0f} ms each, the mean of {found.timed_steps}")
    print(f"images          {found.train_images} training, {found.val_images} validation, {found.test_images} test")
    if file is not None:
        write_json_atomic(file, found.to_json())


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
