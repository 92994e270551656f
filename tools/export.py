#!/usr/bin/env python3
"""Writes a finished run's model as a file that needs none of this code: tools/export.py --run DIR --to onnx|exported.

onnx: for onnxruntime and whatever else reads ONNX. exported: torch.export's program, for torch.export.load.
fp32, in evaluation mode, for batches of any size; the images' size and the tokens removed (merge.r=4) are fixed in it.
The file is read back by its own runtime and compared with the model on test images before it takes its name.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is quiet while libraries are imported, which takes seconds
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # engine/ and models/ are run from the checkout

import argparse

from engine.cli import cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a run folder")
    parser.add_argument("--to", choices=["onnx", "exported"], required=True, help="what to write")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: DIR/model.onnx or DIR/model.pt2")
    parser.add_argument("--weights", choices=["best", "last"], default="best", help="best.pt or last.pt")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as merge.r=4, data.root=DIR")
    args = parser.parse_intermixed_args(argv)

    from engine.export import ABSOLUTE, FORMATS, NOISE, export_model, metadata_of, sample
    from engine.runs.restore import load_run
    from models.interface import merging_method, removed_per_block

    run = load_run(args.run, args.overrides, args.weights)
    path = args.out or args.run / f"model{FORMATS[args.to].suffix}"
    found = export_model(run.model, args.to, path, sample(run.data), metadata_of(run, args.weights))
    print(f"checked on {found.images} test images, in batches of {' and '.join(map(str, found.batch_sizes))}")
    print(
        f"largest difference  {found.difference:.1e} of a logit (allowed {ABSOLUTE:.0e}; images differ by up to "
        f"{found.spread:.1f})"
    )
    print(f"same prediction     {found.same_prediction} of {found.images}")
    if found.ties:
        print(
            f"ties                {found.ties} images where rounding decides what merges: under noise of {NOISE:.0e} "
            "the model gives their logits too"
        )
    if found.operators:
        print(f"operators           {', '.join(found.operators)}: import models.merging, then torch.export.load")
    removed = removed_per_block(run.model)
    print(f"tokens removed      {f'{removed} by {merging_method(run.settings.model)}' if removed else 'none'}")
    print(f"file                {path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(cli(main))
