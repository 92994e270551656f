#!/usr/bin/env python3
"""A page in the browser: drop an image, move the merge budget, and see what the model makes of it.

It shows the prediction, the regions that merging leaves, a heat map, multiply-adds and milliseconds.

  tools/explore.py --run runs/x
  tools/explore.py --model timm:deit_tiny_patch16_224 --weights FILE

Only this machine can open the page, unless --host says otherwise. Ctrl-C ends it. It needs gradio:
pip install -e '.[explore]'
"""

from __future__ import annotations

if __name__ == "__main__":
    from start import prepare

    prepare()

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.cli import cli, parser_of
from models.settings import UserError

EXAMPLE = "example: tools/explore.py --run runs/x merge.method=facility_location lime.samples=200"
LOCAL = "127.0.0.1"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, EXAMPLE)
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run folder")
    parser.add_argument("--model", metavar="NAME", help="instead of --run: timm:NAME or torchvision:NAME")
    parser.add_argument(
        "--weights", metavar="FILE", help="with --model: a file of weights, or timm:NAME, which is downloaded"
    )
    parser.add_argument("--host", default=LOCAL, help=f"where to listen (default: {LOCAL}, this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="its port; 0: one that is free (default: 7860)")
    parser.add_argument("--max-mb", type=int, default=10, metavar="N", help="megabytes of an upload (default: 10)")
    parser.add_argument(
        "--max-megapixels", type=int, default=25, metavar="N", help="millions of pixels of an image (default: 25)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changed settings of the model, such as merge.r=4, and options of heat maps, such as lime.samples=200",
    )
    args = parser.parse_intermixed_args(argv)
    if bool(args.run) == bool(args.model):
        parser.error("give --run DIR, or --model NAME --weights FILE")
    if bool(args.model) != bool(args.weights):
        parser.error("--model and --weights go together; a run has its own weights")
    for name, least, most in (("port", 0, 65535), ("max_mb", 1, 1000), ("max_megapixels", 1, 1000)):
        if not least <= getattr(args, name) <= most:
            option = f"--{name.replace('_', '-')} {getattr(args, name)}"
            parser.error(f"{option}: must be from {least} to {most}")
    return args


@contextmanager
def errors_only() -> Iterator[None]:
    """Leaves notes out: the page says what a budget came to."""
    log = logging.getLogger("hybridmerge")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def main(argv: list[str]) -> None:
    args = parse(argv)
    from importlib.util import find_spec

    from engine.explain.explaining import split_options
    from engine.explain.exploring.looking import Explorer
    from engine.explain.exploring.page import free_port, served
    from engine.explain.exploring.subject import of_name, of_run
    from engine.explain.exploring.upload import Limits

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # uploads are removed at the end
    port = free_port(args.host, args.port)
    if find_spec("gradio") is None:
        raise UserError("tools/explore.py: needs gradio; pip install -e '.[explore]'")
    overrides, options = split_options(args.overrides)
    with errors_only():
        subject = of_run(args.run, overrides) if args.run else of_name(args.model, args.weights, overrides)
        explorer = Explorer(subject, options)
        with served(explorer, Limits(args.max_mb, args.max_megapixels), args.host, port) as address:
            if args.host not in (LOCAL, "localhost", "::1"):
                print("note: whoever reaches this machine can use the page; it has no password")
            print(f"{subject.title}: {address}  (Ctrl-C ends)", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    sys.exit(cli(main))
