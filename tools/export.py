#!/usr/bin/env python3
"""Exports a finished run's model to a file that runs without this code: for ONNX Runtime, OpenVINO or torch.export.

The model is exported in fp32 and in evaluation mode, for batches of any size. The size of the images and the number of
tokens that merging removes (set by merge.r=4, for example) are fixed in the file. Before the file takes its name it is
loaded into its own runtime, and its predictions on test images are compared with the model's. With --int8 it is then
quantized, calibrated on training images, and its accuracy is measured on all test images beside the model's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import sys
from pathlib import Path

from engine.cli import cli, parser_of

EXAMPLE = "example: tools/export.py --run runs/hybrid_merge --to onnx"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a run folder")
    parser.add_argument(
        "--to",
        choices=["onnx", "openvino", "exported"],
        required=True,
        help="onnx: for onnxruntime and other ONNX runtimes; openvino: for OpenVINO, a graph (.xml) and its weights "
        "(.bin); exported: for torch.export.load",
    )
    parser.add_argument("--int8", action="store_true", help="quantize it by NNCF; for onnx and openvino")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write (default: in DIR, model.onnx, model.xml or model.pt2, or model_int8)",
    )
    parser.add_argument(
        "--weights", choices=["best", "last"], default="best", help="the checkpoint, best.pt or last.pt (default: best)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changed settings, such as merge.r=4 or data.root=DIR"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    args = parse(argv)
    from engine.export import export_run, scores
    from engine.runs.restore import load_run
    from models.export import ABSOLUTE, FORMATS, NOISE
    from models.interface import merging_method, removed_per_block

    run = load_run(args.run, args.overrides, args.weights)
    path = args.out or args.run / f"model{'_int8' if args.int8 else ''}{FORMATS[args.to].suffixes[0]}"
    agreement = export_run(run, args.to, path, args.weights, int8=args.int8)
    print(f"checked on {agreement.images} test images, in batches of {' and '.join(map(str, agreement.batch_sizes))}")
    print(
        f"largest difference  {agreement.difference:.1e} of a logit ({'' if args.int8 else f'allowed {ABSOLUTE:.0e}; '}"
        f"images differ by up to {agreement.spread:.1f})"
    )
    print(f"same prediction     {agreement.same_prediction} of {agreement.images}")
    if args.int8 and len(run.data.test):
        of_model, of_file = scores(run, path)
        print(
            f"{run.data.task.score_title:19} {100 * of_file.score:.2f} % of {of_file.n} test images in int8, "
            f"{100 * of_model.score:.2f} % in fp32"
        )
    if agreement.ties:
        print(
            f"ties                {agreement.ties} images where rounding decides which tokens merge: with noise of "
            f"{NOISE:.0e} added, the model gives the file's logits"
        )
    if agreement.operators:
        print(f"operators           {', '.join(agreement.operators)}: import models.merging, then torch.export.load")
    removed = removed_per_block(run.model)
    removal = f"{removed} by {merging_method(run.settings.model)}" if removed else "none"
    print(f"tokens removed      {removal}")
    print(f"file                {path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(cli(main))
