"""Checks many JPEG files before training and trains on them for one epoch; prints the time and the peak of memory.

    python -m tests.soak.images --images 20000

The images are made first, in a temporary folder (--folder keeps them): 1,000 classes, 96 x 80 pixels, 2 kB each. Exit
code 1 if `tools/data.py check` or the epoch takes more than --most MB.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.processes import make_images, start

TRAINING = shlex.split(
    "--cfg digits/hybrid data.name=folder data.size=32 data.cache=none model.img_size=32 model.patch_size=8 "
    "model.in_chans=3 model.embed_dim=16 model.depth=2 model.merge.r=1 split.part=1 train.epochs=1 train.batch_size=64 "
    "threads=1 device=cpu name=many"
)


def measured(tool: str, arguments: list[str], folder: Path) -> float:
    """Runs a tool, prints its seconds and its peak of memory, and returns the latter in MB."""
    started = time.monotonic()
    _, status, usage = os.wait4(start(tool, arguments, folder), 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{tool}: exit code {code}\n{(folder / 'output.txt').read_text()[-3000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(f"{tool:<6} {time.monotonic() - started:5.0f} s  {peak:5.0f} MB", flush=True)
    return peak


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="image files")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--most", type=float, default=1500, help="MB that a process may take")
    parser.add_argument("--folder", type=Path, help="where the images and the run are kept")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.folder or Path(temporary)
        if not (work / "images").exists():
            make_images(work / "images", args.images, (96, 80), classes=min(1000, args.images // 20))
        peaks = [measured("data", ["check", "images"], work)]
        peaks.append(measured("train", [*TRAINING, "data.path=images", f"data.workers={args.workers}"], work))
    return int(max(peaks) > args.most)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
