#!/usr/bin/env python3
"""Evaluates a finished run from its folder alone: tools/eval.py --run runs/hybrid_merge."""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C is quiet while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import sys
from pathlib import Path

from engine.config import cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a run folder")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="which images (default: test)")
    parser.add_argument("--weights", choices=["best", "last"], default="best", help="best.pt or last.pt")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.root=DIR, device=cpu")
    args = parser.parse_intermixed_args(argv)

    from engine.experiment import evaluate_run, load_run  # what they need takes seconds to import
    from models.settings import UserError

    run = load_run(args.run, args.overrides, args.weights)
    found = evaluate_run(run, args.split)
    print(f"{args.run}, {args.weights}.pt on {found.n} {args.split} images: "
          + "  ".join(f"{name} {100 * value:.2f} %" for name, value in found.metrics.items())
          + f"  loss {found.loss:.4f}")  # fmt: skip
    if run.results and args.split == "test" and args.weights == "best":
        said = f"results.json says {100 * run.results['test_top1']:.2f} %"
        if found.metrics["top1"] != run.results["test_top1"]:
            raise UserError(f"{args.run}: {said}: not the same; another device, library version or number of threads?")
        print(f"{said}: the same")


if __name__ == "__main__":
    sys.exit(cli(main))
