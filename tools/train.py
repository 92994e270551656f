#!/usr/bin/env python3
"""Trains a model: tools/train.py --cfg hybrid_merge.yaml [section.key=value ...]."""

from __future__ import annotations

import signal

if __name__ == "__main__":  # Ctrl-C is quiet while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import sys
from pathlib import Path

from engine.config import cli, load_settings, schema, to_yaml
from models.settings import UserError


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", help="a YAML file, or its name under configs/")
    parser.add_argument(
        "--resume", nargs="?", const=True, metavar="DIR", help="go on from the last checkpoint of DIR, or of this --cfg"
    )
    parser.add_argument("--print", action="store_true", help="show the resolved settings and stop")
    parser.add_argument("--schema", metavar="FILE", help="write a JSON schema of the settings, for editors, and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    args = parser.parse_intermixed_args(argv)
    if not (args.cfg or args.schema or isinstance(args.resume, str)):
        parser.error("give --cfg FILE, or --resume DIR")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.schema:
        from engine.run import write_text_atomic

        write_text_atomic(args.schema, json.dumps(schema(), indent=2) + "\n")
        return
    stored = Path(args.resume) / "settings.yaml" if isinstance(args.resume, str) else None
    if stored and not stored.is_file():
        raise UserError(f"--resume {args.resume}: no run (no settings.yaml); give the folder that training printed")
    settings = load_settings(args.cfg or str(stored), args.overrides)
    if args.print:
        print(to_yaml(settings), end="")
        return

    from engine.experiment import run_experiment  # what training needs takes seconds to import
    from engine.run import open_run

    folder = stored.parent if stored else Path(settings.out) / settings.name
    with open_run(folder, resume=bool(args.resume)):
        results = run_experiment(settings, folder, resume=bool(args.resume))
    report(results, folder)


def report(results: dict, folder: Path) -> None:
    """Prints what `results.json` holds. An older run's has no metric, which was top-1, and no share: all learnt."""
    from engine.metrics import TITLES

    first, second = (name for name in results if name.startswith("test_") and name not in ("test_images", "test_loss"))
    title = {"top1": "test accuracy", "map": "test mAP"}[results.get("metric", "top1")]
    beside = TITLES[second.removeprefix("test_")]
    print(f"\n{title:<14}  {100 * results[first]:.2f} %  ({beside} {100 * results[second]:.2f} %, "
          f"{results['test_images']} images)")  # fmt: skip
    share = results.get("trained_share", 1)
    learnt = "" if share == 1 else f", of which {100 * share:.2f} % learnt"
    print(f"parameters      {results['params'] / 1e6:.3f} M{learnt}")
    print(f"GMACs           {results['gmacs']:.4f}  (one MAC is two FLOPs)")
    print(f"training        {results['seconds']:.0f} s, {results['images_per_second']:.0f} images/s")
    print(f"run folder      {folder}")
    print(f"curves          tensorboard --logdir {folder}")


if __name__ == "__main__":
    sys.exit(cli(main))
