#!/usr/bin/env python3
"""Shows which parts of images a run's answer depends on, also where the model merged them.

For each image and method a figure: photograph, explanation, the model's first five classes; a sheet of all of them;
and the maps as numbers, in explanations.npz. Images are read exactly as by tools/predict.py.

  tools/explain.py --run runs/x --images photos --method gradcam rollout lime --out explained
  tools/explain.py --run runs/x --run runs/y --images cat.jpg --out side_by_side     (several runs beside each other)
  tools/explain.py --run runs/x --images cat.jpg --budgets unmerged 1.0 0.8 --out budgets   (several ways of merging)

An option of a method is set as METHOD.option=value: lime.samples=200. merge.r=8 merges otherwise than the run did.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from pathlib import Path

from engine.cli import cli, parser_of, take_overrides

EXAMPLE = "example: tools/explain.py --run runs/x --images cat.jpg --method gradcam lime lime.samples=200 --out cat"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        metavar="DIR",
        help="a run folder; give it several times to put explanations beside each other",
    )
    parser.add_argument("--images", type=Path, nargs="+", metavar="PATH", help="image files and folders of images")
    parser.add_argument(
        "--wrong",
        type=int,
        metavar="N",
        help="instead of --images: the first run's N most confident mistakes in its test",
    )
    parser.add_argument(
        "--evaluate",
        metavar="CFG",
        help="instead of --run and --images: how faithful the methods are for a pretrained model, by deletion and "
        "insertion, for each way of merging of a config of tools/zeroshot.py",
    )
    parser.add_argument("--count", type=int, metavar="N", help="with --evaluate: so many of its images (default: 500)")
    parser.add_argument("--steps", type=int, metavar="N", help="with --evaluate: steps of the curves (default: 28)")
    parser.add_argument(
        "--measure",
        nargs="+",
        metavar="NAME",
        help="with --evaluate: areas (deletion and insertion, default), road, infidelity",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        default=["gradcam"],
        metavar="NAME",
        help="gradcam (default), rollout, gradient_rollout, lime, integrated_gradients, occlusion, rise, merge, or all",
    )
    parser.add_argument("--target", metavar="CLASS", help="a class's name or number (default: the predicted class)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write into")
    parser.add_argument(
        "--budgets",
        nargs="+",
        metavar="GMACS",
        help="each run with several ways of merging beside each other: GMACs of one image, such as 0.8, unmerged, or "
        "trained, which is what the run says",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write the pictures for TensorBoard, too: --logdir DIR of --out"
    )
    parser.add_argument("--smooth", action="store_true", help="draw maps interpolated instead of cell by cell")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changed settings of every run, such as merge.r=4, and options of methods, such as lime.samples=200",
    )
    args = take_overrides(parser.parse_intermixed_args(argv), "images", "method", "measure", "budgets")
    check_together(parser, args)
    return args


def check_together(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses options that do not go together, and numbers below 1."""
    if args.evaluate and (args.run or args.images or args.target or args.wrong):
        parser.error("--evaluate has a model and images of its own: leave --run, --images, --wrong and --target out")
    if not args.evaluate and not (args.run and bool(args.images) != bool(args.wrong)):
        parser.error("give --run DIR, and either --images PATH or --wrong N; or --evaluate CFG")
    for name in ("count", "steps", "wrong"):
        value = getattr(args, name)
        if value is not None and (value < 1 or (name != "wrong" and not args.evaluate)):
            parser.error(f"--{name} {value}: at least 1" + ("" if name == "wrong" else ", and only with --evaluate"))
    if args.measure and not args.evaluate:
        parser.error("--measure: only with --evaluate")
    if args.evaluate and (args.budgets or args.tensorboard):
        parser.error("--budgets and --tensorboard: with --run; the config of --evaluate says how much is merged")


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.evaluate:
        evaluate(args)
        return
    from engine.explain.opening import Wanted
    from engine.explain.report import report

    wanted = Wanted(
        args.run,
        args.images,
        args.method,
        args.target,
        args.overrides,
        args.smooth,
        args.wrong or 0,
        args.budgets,
        args.tensorboard,
    )
    for line in report(wanted, args.out):
        print(line)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates methods on a pretrained model, and writes the tables."""
    import torch

    from engine.explain.explaining import split_options
    from engine.explain.faithful.areas import STEPS
    from engine.explain.faithful.evaluation import COUNT, Plan
    from engine.explain.faithful.evaluation import evaluate as evaluate_plan
    from engine.explain.faithful.results import write_results
    from engine.settings.layers import load_file
    from engine.study.zeroshot.settings import ZeroshotSettings

    rest, options = split_options(args.overrides)
    settings = load_file(ZeroshotSettings, args.evaluate, rest, "zeroshot")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    measures = list(dict.fromkeys(args.measure)) or ["areas"]
    plan = Plan(settings, args.method, options, args.count or COUNT, args.steps or STEPS, measures)
    print(write_results(plan, evaluate_plan(plan, args.out), args.out))
    print(f"{args.out}: table.md, faithfulness.json")


if __name__ == "__main__":
    sys.exit(cli(main))
