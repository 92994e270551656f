#!/usr/bin/env python3
"""Runs a study: the configs x overrides x seeds x folds of a plan, and at the end their comparison.

  tools/study.py studies/digits --dry-run       # what would run, and what it costs
  tools/study.py studies/digits                 # again after Ctrl-C or a failure: only what is left
  tools/study.py my_plan.yaml train.epochs=3 seeds=[0,1] out=runs/short

What is done is not run again, by its resolved settings, whatever its name. A run that fails is named at the end, with
exit code 2, and the others go on. docs/studies.md lists the keys of a plan.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from typing import TYPE_CHECKING

from engine.cli import cli, parser_of
from engine.launch.slurm import split_words
from engine.tables import print_table
from engine.wording import counted
from models.settings import UserError

PLAN = ("name", "out", "jobs", "threads", "seeds", "folds", "sweep", "seed", "device")  # no options of --slurm

if TYPE_CHECKING:
    from engine.study.execute.pool import Failure
    from engine.study.execute.study import Study
    from engine.study.plan.folders import Placing


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("plan", help="a YAML file, its name under configs/, or a study folder")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and its cost, and exit")
    parser.add_argument("--no-timing", action="store_true", help="with --dry-run: do not time the first steps of runs")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: the plan's jobs, or 1)")
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="OPTION=VALUE",
        help="submit the runs to Slurm, with options such as partition=x time=4:00:00; local: as jobs of this machine",
    )
    parser.add_argument("--report", action="store_true", help="train nothing: evaluate sweeps and compare what is done")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings of all runs, such as train.epochs=3, or keys of the plan: name, out, seeds, folds, threads, ...",
    )
    args = parser.parse_intermixed_args(argv)
    if args.slurm:
        args.slurm, settings = split_words(args.slurm, PLAN)
        args.overrides += settings
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.study.execute.study import Study
    from engine.study.plan.reading import read_plan
    from engine.study.plan.rows import planned_runs

    jobs = [] if args.jobs is None else [f"jobs={args.jobs}"]
    plan = read_plan(args.plan, [*args.overrides, *jobs])
    study = Study(plan, planned_runs(plan))
    if args.slurm is not None and args.report:
        raise UserError("--slurm: submits what is left, and --report trains nothing; leave one of them out")
    if args.slurm is not None and plan.settings.search:
        raise UserError("--slurm: not for a search, whose runs follow from each other; run it in a job of its own")
    if plan.settings.search:
        from engine.study.search.space import checked

        checked(plan)
    if args.dry_run:
        dry_run(study, timing=not args.no_timing)
        return
    if args.slurm is not None:
        from engine.launch import slurm

        slurm.checked(args.slurm)  # before anything is written
    with study.open():
        if plan.settings.search:
            search(study, report=args.report)
        elif args.slurm is not None:
            submit(study, args.slurm)
        else:
            run(study, report=args.report)


def dry_run(study: Study, *, timing: bool) -> None:
    """Prints what would run, and what it costs. Nothing is written."""
    from engine.study.execute.study import check_room
    from engine.study.plan import cost
    from engine.study.plan.folders import place

    check_room(study.folder)
    placing = place(study.runs, study.folder)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else (lambda text: None)
    measured = cost.measure_all(placing.runs, say, study.plan.settings.jobs) if timing else {}
    print_table(*cost.table(placing.runs, measured))
    for line in [*cost.summary(placing.runs, measured, study.plan.settings.jobs), *others(placing)]:
        print(line)
    if study.plan.settings.sweep and measured:
        print("sweeps come on top of this time")
    if (searched := study.plan.settings.search) is not None:
        print(f"a search of {counted(searched.trials, 'trial')} like this one, less those that are stopped early")
    print(f"study folder    {study.folder}")


def others(placing: Placing) -> list[str]:
    """Returns lines on run folders that are not used, and on runs with damaged results."""
    lines = [f"damaged, not used: {problem}" for problem in placing.damaged.values()]
    lines += [f"damaged, not done: {placed.problem}" for placed in placing.runs if placed.problem]
    if placing.others:
        names = ", ".join(path.name for path in placing.others)
        lines.append(f"not in the plan: {names}")
    return lines


def run(study: Study, *, report: bool) -> None:
    """Runs what is left, and compares what is done.

    Raises:
        UserError: a run failed; the others are done.
    """
    from engine.study.execute.outputs import write_outputs
    from engine.study.plan import cost

    placing = study.place()
    print_table(*cost.table(placing.runs, {}))
    for line in [*cost.summary(placing.runs, {}, study.plan.settings.jobs), *others(placing)]:
        print(line, flush=True)
    failures = study.execute(placing.only_done() if report else placing)
    print()
    for line in write_outputs(study.folder, study.place()):
        print(line)
    finish(study, failures)


def search(study: Study, *, report: bool) -> None:
    """Runs the trials that are left of a search, and prints them, the best first."""
    from engine.study.search.search import Search

    found = Search(study)
    failures = [] if report else found.execute()
    print()
    print_table(*found.table())
    for line in found.report():
        print(line)
    finish(study, failures)


def submit(study: Study, words: list[str]) -> None:
    """Submits the runs that are left to Slurm."""
    from engine.study.execute.cluster import submit

    local = "local" in words
    for line in submit(study.folder, study.plan.settings.name, study.place().runs, words, study.plan.settings.jobs):
        print(line)
    if local:
        run(study, report=True)
    else:
        command = study.plan.command
        print(f"state           {command} --dry-run --no-timing; when all are done: {command} --report")


def finish(study: Study, failures: list[Failure]) -> None:
    """Says where everything is, and what failed.

    Raises:
        UserError: something failed; the others are done.
    """
    print(f"study folder    {study.folder}")
    for failure in failures:
        print(f"failed          {failure.title}: {failure.error}; log: {failure.log}")
    if failures:
        raise UserError(
            f"{study.folder}: {counted(len(failures), 'job')} failed, first {failures[0].title}: {failures[0].error}; "
            f"see {failures[0].log}, and start again with: {study.plan.command}"
        )


if __name__ == "__main__":
    sys.exit(cli(main))
