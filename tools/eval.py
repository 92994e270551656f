#!/usr/bin/env python3
"""Evaluates a finished run from its folder alone: tools/eval.py --run runs/hybrid_merge [merge.r=4].

The folder of all folds is evaluated fold by fold, each on the images that it has not learnt. Merging may be another
than in training: merge.r=4, merge.method=random, merge.target_gmacs=0.05. A sweep evaluates one key's values in one
call, into a Markdown table: --sweep merge.r=[0,4,8,16].
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse
from typing import TYPE_CHECKING, NamedTuple

from engine.cli import cli
from engine.tables import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from engine.measure.evaluate import Evaluation
    from engine.runs.restore import FinishedRun


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        action="append",
        metavar="DIR",
        help="a run folder, or that of all folds; several times: they say together what an image is",
    )
    parser.add_argument("--split", choices=["test", "val"], default="test", help="which images (default: test)")
    parser.add_argument("--weights", choices=["best", "last"], default="best", help="best.pt or last.pt")
    parser.add_argument("--tta", choices=["flip"], help="mean probabilities of each image and its mirror image")
    parser.add_argument("--sweep", metavar="KEY=[...]", help="evaluate each value of a key of merge:, into a table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the confusion matrix, or of a sweep the accuracy (or mAP) by GMACs",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.root=DIR, merge.r=4")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    from models.settings import UserError

    if args.sweep and (args.tta or len(args.run) > 1):
        raise UserError("--sweep: is of one --run, and without --tta; evaluate one way of merging, as in merge.r=4")
    check_outputs(args)
    if args.sweep:
        sweep(args)
    else:
        evaluate(args)


def check_outputs(args: argparse.Namespace) -> None:
    """Finds what would keep the files from being written before anything is computed."""
    from engine.files import demand_writable
    from engine.runs.folder import RunFolder
    from models.settings import UserError

    given = {"--json": args.json, "--plot": args.plot}
    for option, path in given.items():
        if path is None:
            continue
        demand_writable(option, path, f"evaluated.{'json' if option == '--json' else 'png'}")
        if RunFolder(path.parent).owns(path):
            raise UserError(f"{option} {path}: is a file of the run itself; give another name")
    if args.json and args.plot and args.json.resolve() == args.plot.resolve():
        raise UserError(f"--plot {args.plot}: is the file of --json; give another")


def evaluate(args: argparse.Namespace) -> None:
    from engine.files import write_json_atomic
    from engine.measure.ensembles import load_folds
    from engine.runs.folder import RunFolder
    from engine.runs.restore import load_run, read_settings
    from models.settings import UserError

    if twice := [run for i, run in enumerate(args.run) if run.resolve() in [r.resolve() for r in args.run[:i]]]:
        raise UserError(f"--run {twice[0]}: given twice; give it once")
    whole = [RunFolder(folder).holds_folds for folder in args.run]
    if any(whole) and not all(whole):
        one, folds = (args.run[whole.index(kind)] for kind in (False, True))
        raise UserError(f"--run {one}: is one run, and {folds} holds folds; give folders of one kind")
    if args.plot and not read_settings(args.run[0])[0].data.task.one_class:
        raise UserError("--plot: images with many labels have no confusion matrix; leave it out")
    if any(whole):
        each = [load_folds(folder, args.overrides, args.weights) for folder in args.run]
        parts = [show(args, runs) for runs in zip(*each)]
        together = show_folds(args, [part.found for part in parts])
    else:
        parts = [show(args, [(folder, load_run(folder, args.overrides, args.weights)) for folder in args.run])]
        together = {}
    if args.json:
        rows = [{"runs": part.runs, "images": part.found.n, "loss": part.found.loss, **part.metrics} for part in parts]
        how = {"split": args.split, "weights": args.weights, "tta": args.tta, "overrides": args.overrides}
        write_json_atomic(args.json, {**how, "evaluated": rows, **together})
    if args.plot:
        draw(args, parts)
    if differ := [part.differs for part in parts if part.differs]:
        reasons = "other data, another device, library version or number of threads?"
        raise UserError(f"{differ[0]}: not the same; {reasons}")


class Part(NamedTuple):
    """What was found on the images of one fold, or on all; `differs` says what `results.json` has in its place."""

    runs: list[str]
    found: Evaluation
    metrics: dict[str, float]
    labels: Tensor
    classes: list[str]
    differs: str | None


def show(args: argparse.Namespace, runs: Sequence[tuple[Path, FinishedRun]]) -> Part:
    """Evaluates a run, or several together, and says what came of it."""
    from engine.measure.ensembles import evaluate_together

    folders, models = zip(*runs)
    if len(runs) == 1:
        found, f1 = evaluated(models[0], args.split, args.tta is not None, args.plot is not None)
    else:
        found, f1 = evaluate_together(folders, models, args.split, args.tta is not None), None
    shown = found.metrics if f1 is None else {**found.metrics, "f1 at the run's thresholds": f1}
    views = ", each and its mirror image" if args.tta else ""
    print(
        f"{' + '.join(map(str, folders))}, {args.weights}.pt on {found.n} {args.split} images{views}: "
        + "  ".join(f"{name} {100 * value:.2f} %" for name, value in shown.items())
        + f"  loss {found.loss:.4f}"
    )
    differs = [compare(args, folder, run, found if len(runs) == 1 else None) for folder, run in runs]
    data = models[0].data
    return Part(list(map(str, folders)), found, shown, getattr(data, args.split).labels, data.classes, differs[0])


def draw(args: argparse.Namespace, parts: Sequence[Part]) -> None:
    """Draws the confusion matrix of all images."""
    import torch  # what these need takes seconds to import

    from engine.figures.confusion import confusion_figure
    from engine.figures.drawing import save_figure
    from engine.measure.confusion import confusion_matrix
    from engine.measure.predictions import predictions_of

    labels, classes = torch.cat([part.labels for part in parts]), parts[0].classes
    said = predictions_of(labels, torch.cat([part.found.logits for part in parts]))
    right = 100 * float((said.predicted == said.labels).mean())
    title = f"{' + '.join(run.name for run in args.run)}: {right:.2f} % of {len(labels)} {args.split} images"
    matrix = confusion_matrix(said.labels, said.predicted, len(classes))
    save_figure(confusion_figure(matrix, classes, title), args.plot)


def compare(args: argparse.Namespace, folder: Path, run: FinishedRun, found: Evaluation | None) -> str | None:
    """Says where a run merges otherwise than in training, or that it has found again what its `results.json` says;
    returns what that says where it is something else."""
    from engine.cost.macs import measure
    from models.interface import merging_method, removed_per_block

    if not run.as_trained:
        gmacs = measure(run.model, settings=run.settings.model).macs / 1e9
        name = f"{folder}: " if len(args.run) > 1 else ""
        print(
            f"{name}merging is not that of training: {merging_method(run.settings.model) or 'none'}, "
            f"tokens removed by each block: {removed_per_block(run.model)}; {gmacs:.4f} GMACs"
        )
    elif found and run.results and args.split == "test" and args.weights == "best" and not args.tta:
        stored = run.results.test_score
        said = f"results.json says {100 * stored:.2f} %"
        if found.score != stored:
            return f"{folder}: {said}"
        print(f"{said}: the same")
    return None


def show_folds(args: argparse.Namespace, found: list[Evaluation]) -> dict:
    """Prints what the folds say together, and returns it. Validation images chose the epoch: they promise nothing of
    new ones."""
    from engine.measure.intervals import spread, spread_lines
    from engine.tasks import task_with_metric

    counted = task_with_metric(next(iter(found[0].metrics))).counts_images
    together = spread([one.score for one in found], [one.n for one in found], counted)
    if args.split != "test":
        together |= {"pooled": None, "unseen": None}
    for line in spread_lines(together):
        print(line)
    return together


def evaluated(
    run: FinishedRun, split: str, mirror: bool = False, keep_logits: bool = False
) -> tuple[Evaluation, float | None]:
    """A run on a split, and F1 where each label is said yes to from the probability on that the run's `results.json`
    has for it; None where it has none."""
    import torch  # what these need takes seconds to import

    from engine.measure.ensembles import evaluate_run
    from engine.measure.metrics import METRICS

    thresholds = run.results.thresholds if run.results else None
    if not thresholds:
        return evaluate_run(run, split, keep_logits=keep_logits, mirror=mirror), None
    found = evaluate_run(run, split, keep_logits=True, mirror=mirror)
    least = torch.tensor([thresholds[name] for name in run.data.classes], dtype=torch.float64)
    said = found.logits.sigmoid().double() >= least  # float32 would round a threshold onto a probability beside it
    return found, METRICS["f1"](len(least))(said.long(), getattr(run.data, split).labels.long()).item()


def sweep(args: argparse.Namespace) -> None:
    from engine.figures.drawing import save_figure
    from engine.files import write_json_atomic
    from engine.study import sweep
    from engine.study.curves import accuracy_by_cost
    from engine.tasks import title_of

    key, _ = sweep.parse_sweep(args.sweep)
    rows = sweep.sweep(args.run[0], args.sweep, args.overrides, args.weights, args.split)
    print_table(*sweep.table(key, rows))
    if args.json:
        write_json_atomic(args.json, [row.to_json() for row in rows])
    if args.plot:
        points = [(row.label, row.gmacs, row.score) for row in rows]
        save_figure(accuracy_by_cost(points, key, title_of(rows[0].metric)), args.plot)


if __name__ == "__main__":
    sys.exit(cli(main))
