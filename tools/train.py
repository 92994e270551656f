#!/usr/bin/env python3
"""Trains a model from a settings file, tests it once at the end, and writes a run folder, runs/NAME.

  tools/train.py --cfg hybrid_merge.yaml model.merge.r=4 train.lr=5e-4 name=r4

Any setting can be overridden by section.key=value. With split.folds=5 five models are trained, each tested on another
fifth of the images; split.fold=2 trains one of them. Ctrl-C saves the run; --resume goes on with it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse
import json
from typing import TYPE_CHECKING

from engine.cli import cli
from models.settings import UserError

if TYPE_CHECKING:
    from engine.runs.folder import RunFolder
    from engine.runs.results import Results
    from engine.settings.schema import RunSettings


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    from engine.settings.layers import load_settings, to_yaml  # imports torch, which takes seconds

    if args.schema:
        from engine.files import write_text_atomic
        from engine.settings.schema import schema

        write_text_atomic(args.schema, json.dumps(schema(), indent=2) + "\n")
        return
    from engine.runs.folder import RunFolder

    stored = RunFolder(args.resume) if isinstance(args.resume, str) else None
    if stored and not stored.is_run:
        name = stored.settings_file.name
        raise UserError(f"--resume {stored}: no run (no {name}); give the folder that training printed")
    settings = load_settings(args.cfg, args.overrides) if args.cfg else stored.settings_with(args.overrides)
    if args.print:
        print(to_yaml(settings), end="")
        return

    from engine.train.experiment import run_experiment

    run = stored or RunFolder(Path(settings.out) / settings.name)
    if settings.split.folds:
        train_folds(settings, folder_of_folds(stored, settings) if stored else run, resume=bool(args.resume))
        return
    with run.lock(resume=bool(args.resume)):
        results = run_experiment(settings, run.path, resume=bool(args.resume))
    report(results, run.path)


def folder_of_folds(run: RunFolder, settings: RunSettings) -> RunFolder:
    """The folder of all folds, where --resume names it or one of the folds."""
    fold = run.settings.split.fold
    if fold is None:
        return run
    if settings.split.fold != fold:
        others = run.path.absolute().parent
        raise UserError(f"split.fold = {settings.split.fold}: {run} is fold {fold}; resume {others}")
    return run.folder_of_folds()


def train_folds(settings: RunSettings, run: RunFolder, *, resume: bool) -> None:
    from engine.train.folds import run_folds, summarise

    folder = run.path
    ran = run_folds(settings, folder, resume)
    if settings.split.fold is not None:
        report(ran[settings.split.fold], run.fold(settings.split.fold).path)
    if missing := run.unfinished_folds():
        names = ", ".join(map(str, missing))
        print(f"folds           {names} not finished; all of them: tools/train.py --resume {folder}")
    else:
        report_folds(summarise(settings, folder), folder)


def report(results: Results, folder: Path) -> None:
    """Prints what a run measured."""
    print()
    report_test(results)
    share = results.trained_share
    learnt = "" if share == 1 else f", of which {100 * share:.2f} % learnt"
    print(f"parameters      {results.params / 1e6:.3f} M{learnt}")
    print(f"GMACs           {results.gmacs:.4f}  (one MAC is two FLOPs)")
    print(f"training        {results.seconds:.0f} s, {results.images_per_second:.0f} images/s")
    print(f"run folder      {folder}")
    print(f"curves          tensorboard --logdir {folder}")


def report_test(results: Results) -> None:
    """Prints what the test images say, or that there are none."""
    from engine.measure.intervals import percent, wilson
    from engine.tasks import task_with_metric

    metric = results.metric
    task = task_with_metric(metric)
    title = task.score_title
    if results.test_images:
        others = [
            f"{task.titles[name]} {100 * score:.2f} %, "
            for name, score in results.test_metrics.items()
            if name != metric and name in task.titles
        ]
        print(
            f"{f'test {title}':<14}  {100 * results.test_score:.2f} %  ({''.join(others)}{results.test_images} images)"
        )
        if results.test_interval:
            print(f"95 % interval   {percent(results.test_interval)} %")
        return
    print(f"{f'test {title}':<14}  not measured: no test images (split.test = 0)")
    if (best := results.val_score) is not None:
        n = results.val_images
        print(f"{f'val {title}':<14}  {100 * best:.2f} %  (best of the epochs, so rather high; {n} images)")
        if task.counts_images:
            print(f"95 % interval   {percent(wilson(round(best * n), n))} %  (of one epoch; the best one's is lower)")


def report_folds(report: dict, folder: Path) -> None:
    """Prints what `folds.json` holds."""
    from engine.measure.intervals import percent, spread_lines
    from engine.tasks import task_with_metric

    metric = report["metric"]
    title = f"test {task_with_metric(metric).score_title}"
    print(f"\nfold            {title}, %   95 % interval   images   training, s")
    for fold in report["fold"]:
        interval = percent(fold["test_interval"]) if fold["test_interval"] else "-"
        print(
            f"{fold['fold']:<14}  {100 * fold[f'test_{metric}']:>{len(title) + 3}.2f}   {interval:>13}   "
            f"{fold['images']:>6}   {fold['seconds']:>11.0f}"
        )
    for line in spread_lines(report):
        print(line)
    if report["pooled"]:
        worst = sorted((accuracy, name) for name, accuracy in report["class_accuracy"].items() if accuracy is not None)
        print("worst classes   " + ", ".join(f"{shown(name)} {100 * accuracy:.0f} %" for accuracy, name in worst[:5]))
        for i, pair in enumerate(report["confused"][:5]):
            first, second = map(shown, pair["classes"])
            print(
                f"{'' if i else 'most confused':<14}  {first} as {second} {pair['first_as_second']}, "
                f"{second} as {first} {pair['second_as_first']}"
            )
    print(f"training        {report['seconds']:.0f} s in all")
    print(f"report          {folder}/folds.json" + (", confusion.png, confused.png" if report["pooled"] else ""))
    print(f"curves          tensorboard --logdir {folder}")


def shown(name: str) -> str:
    """A name on one line."""
    return name if name.isprintable() else repr(name)


if __name__ == "__main__":
    sys.exit(cli(main))
