#!/usr/bin/env python3
"""Evaluates finished runs from their folders alone, and checks that they reproduce the recorded accuracy.

Several runs are evaluated together, by their mean probabilities. A folder of all folds is evaluated fold by fold, each
on the images that it was not trained on. Merging may differ from training (merge.r=4, merge.method=random,
merge.target_gmacs=0.05); --sweep evaluates several values of one key of merging and prints a table.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import add_runs, cli, parser_of
from engine.tables import print_table
from engine.wording import counted
from models.settings import UserError

if TYPE_CHECKING:
    from engine.measure.reevaluate import Group, Reevaluation

EXAMPLE = "example: tools/eval.py --run runs/hybrid_merge --sweep merge.r=[0,4,8,16] --plot sweep.png"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    add_runs(parser, "evaluate runs together")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="the images (default: test)")
    parser.add_argument(
        "--weights", choices=["best", "last"], default="best", help="the checkpoint, best.pt or last.pt (default: best)"
    )
    parser.add_argument("--tta", choices=["flip"], help="average over each image and its mirror image (default: off)")
    parser.add_argument(
        "--sweep", metavar="KEY=[...]", help="evaluate every value of a key of merge: in a list, and print a table"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the confusion matrix; with --sweep, accuracy (or mAP) against GMACs",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changed settings, such as merge.r=4 or data.root=DIR"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.sweep and (args.tta or len(args.run) > 1):
        raise UserError("--sweep: takes a single --run, without --tta; or evaluate one way of merging, as in merge.r=4")
    check_outputs(args)
    if args.sweep:
        sweep(args)
    else:
        evaluate(args)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written, or must not be, before anything is computed."""
    from engine.files import demand_writable
    from engine.runs.folder import RunFolder

    for option, path, example in (("--json", args.json, "evaluated.json"), ("--plot", args.plot, "evaluated.png")):
        if path is None:
            continue
        demand_writable(option, path, example)
        if RunFolder(path.parent).owns(path):
            raise UserError(f"{option} {path}: is a file of the run itself; give another name")
    if args.json and args.plot and args.json.resolve() == args.plot.resolve():
        raise UserError(f"--plot {args.plot}: is the file of --json; give another")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates runs once, and compares the scores with the recorded ones."""
    from engine.files import write_json_atomic
    from engine.measure.intervals import spread_lines
    from engine.measure.reevaluate import class_lines, folds_to_json, load_groups, over_folds, reevaluate
    from engine.runs.folder import RunFolder

    if args.plot and not RunFolder(args.run[0]).settings.data.task.one_class:
        raise UserError("--plot: images with many labels have no confusion matrix; leave it out")
    parts, mismatches = [], []
    for group in load_groups(args.run, args.overrides, args.weights):
        part = reevaluate(group, args.split, mirror=args.tta is not None, keep_logits=args.plot is not None)
        print_scores(args, part)
        mismatches += compare_with_record(args, group, part)
        parts.append(part)
    together = {}
    if RunFolder(args.run[0]).holds_folds:
        together = folds_to_json(parts, args.split)
        print("\n".join(spread_lines(over_folds(parts, args.split))))
    for line in class_lines(parts, args.split):
        print(line)
    if args.json:
        options = {"split": args.split, "weights": args.weights, "tta": args.tta, "overrides": args.overrides}
        write_json_atomic(args.json, {**options, "evaluated": [part.to_json() for part in parts], **together})
    if args.plot:
        draw(args, parts)
    if mismatches:
        reasons = "other data, another device, library version or number of threads?"
        raise UserError(f"{mismatches[0]}: not the same; {reasons}")


def print_scores(args: argparse.Namespace, part: Reevaluation) -> None:
    runs = " + ".join(map(str, part.folders))
    views = ", each and its mirror image" if args.tta else ""
    scores = "  ".join(f"{name} {100 * value:.2f} %" for name, value in part.metrics.items())
    images = f"{counted(part.evaluation.n, f'{args.split} image')}{views}"
    print(f"{runs}, {args.weights}.pt on {images}: {scores}  loss {part.evaluation.loss:.4f}")


def compare_with_record(args: argparse.Namespace, group: Group, part: Reevaluation) -> list[str]:
    """Prints whether merging differs from training or the recorded score is reproduced; returns scores that are not."""
    from engine.measure.reevaluate import describe_merging

    mismatches = []
    as_recorded = len(group) == 1 and args.split == "test" and args.weights == "best" and not args.tta
    for (folder, run), costs in zip(group, part.costs):
        if not run.as_trained:
            name = f"{folder}: " if len(args.run) > 1 else ""
            print(f"{name}merging differs from training: {describe_merging(run, costs)}")
        elif costs is not None:
            print(describe_merging(run, costs))
        if run.as_trained and as_recorded and run.results and run.results.test_score is not None:
            recorded = f"results.json says {100 * run.results.test_score:.2f} %"
            if part.evaluation.score == run.results.test_score:
                print(f"{recorded}: the same")
            else:
                mismatches.append(f"{folder}: {recorded}")
    return mismatches


def draw(args: argparse.Namespace, parts: Sequence[Reevaluation]) -> None:
    """Draws the confusion matrix of all images."""
    from engine.figures.confusion import confusion_figure
    from engine.figures.drawing import save_figure
    from engine.measure.confusion import confusion_matrix
    from engine.measure.reevaluate import pooled_predictions

    classes, predictions = parts[0].classes, pooled_predictions(parts)
    accuracy = 100 * float((predictions.predicted == predictions.labels).mean())
    runs = " + ".join(run.name for run in args.run)
    title = f"{runs}: {accuracy:.2f} % of {len(predictions.labels)} {args.split} images"
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    save_figure(confusion_figure(matrix, classes, title), args.plot)


def sweep(args: argparse.Namespace) -> None:
    """Evaluates a run with several values of one key of merging."""
    from engine.figures.drawing import save_figure
    from engine.files import write_json_atomic
    from engine.study import sweep
    from engine.study.curves import accuracy_by_cost
    from engine.tasks import title_of

    key, _ = sweep.parse_sweep(args.sweep)
    rows = sweep.sweep(args.run[0], args.sweep, args.overrides, args.weights, args.split)
    print_table(*sweep.table(key, rows))
    for note in sweep.notes(rows):
        print(note)
    if args.json:
        write_json_atomic(args.json, [row.to_json() for row in rows])
    if args.plot:
        points = [(row.label, row.gmacs, row.score) for row in rows if row.gmacs is not None]
        if not points:
            raise UserError(f"--plot {args.plot}: the GMACs of this model cannot be counted, and are its axis; omit it")
        save_figure(accuracy_by_cost(points, key, title_of(rows[0].metric)), args.plot)


if __name__ == "__main__":
    sys.exit(cli(main))
