"""Trains for many steps and watches memory and open files, which must not grow.

    python -m tests.soak.steps --steps 3000
    python -m tests.soak.steps --steps 3000 --workers 2

Prints a table of the resident memory of the training process and of its workers together, and of the open files of the
training process. Exit code 1 if the last third has more than 2 % and 8 MB more memory than the third before, or more
files at its end than at its start.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.soak.processes import ended, make_images, start

TINY = shlex.split(
    "--cfg digits/hybrid model.embed_dim=16 model.depth=2 model.merge.r=1 train.batch_size=16 log.every_steps=10 "
    "checkpoint.every_steps=50 train.warmup_epochs=0 threads=1 device=cpu name=soak"
)
FILES = shlex.split(
    "data.name=folder data.path=images data.size=16 data.cache=none model.img_size=16 model.in_chans=3 split.part=1 "
    "model.patch_size=4"
)


class Sample(NamedTuple):
    """What a process and its workers hold at one moment: lines of metrics so far, MB of memory, open files."""

    lines: int
    memory: float
    workers: float
    files: int


def sample(process: int, lines: int) -> Sample:
    """Measures a process; raises OSError if it is gone."""
    children = [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Sample(lines, _memory(process), sum(map(_memory, children)), files)


def _memory(process: int) -> float:
    """Returns the resident memory of a process in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0: images in memory")
    args = parser.parse_args(argv)
    arguments, samples = [*TINY, f"train.steps={args.steps}"], []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.workers:
            make_images(work / "images", 400, (24, 20), classes=10)
            arguments += [*FILES, f"data.workers={args.workers}"]
        process, metrics = start("train", arguments, work), work / "runs" / "soak" / "metrics.jsonl"
        while (code := ended(process)) is None:
            time.sleep(0.5)
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if lines > 10:  # libraries and caches are there by now
                try:
                    samples.append(sample(process, lines))
                except OSError:
                    break  # it is ending
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) if code is None else code
        if code:
            sys.exit(f"exit code {code}\n{(work / 'output.txt').read_text()[-3000:]}")
    return report(samples)


def report(samples: list[Sample]) -> int:
    """Prints samples from the beginning to the end; returns 1 if memory or files grow."""
    # The last ones are of the test after training, when the workers have ended.
    with_workers = samples[0].workers > 0
    training = [s for s in samples if s.lines < samples[-1].lines and (s.workers > 0) == with_workers]
    print("| lines of metrics | memory, MB | workers, MB | open files |\n| ---: | ---: | ---: | ---: |")
    for chosen in training[:: max(1, len(training) // 10)]:
        print(f"| {chosen.lines} | {chosen.memory:.0f} | {chosen.workers:.0f} | {chosen.files} |")
    third = len(training) // 3
    middle, last = training[third : 2 * third], training[2 * third :]
    grown = []
    for name in ("memory", "workers"):
        before, after = (median(getattr(s, name) for s in part) for part in (middle, last))
        if after > 1.02 * before + 8:
            grown.append(f"{name} from {before:.0f} to {after:.0f} MB")
    before, after = (median(s.files for s in part) for part in (middle, last))
    if after > before:
        grown.append(f"open files from {before:.0f} to {after:.0f}")
    peak = max(s.memory for s in training)
    print(f"at most {peak:.0f} MB and {max(s.files for s in training)} files; {', '.join(grown) or 'nothing grows'}")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
