"""Kills training again and again, by SIGKILL, and compares the end with that of a run that was left alone, bit for bit.

    python -m tests.soak.kills --runs 50

Each run is killed one to three times, at a random moment or while a checkpoint is written, and resumed. Weights,
optimizer, metrics.jsonl, results.json and predictions must then be the same, and no process may be left behind. The
cases are one run, a run with worker processes, folds, and a model that thaws from epoch to epoch. Takes a few seconds a
run. Exit code 1 if a run differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.soak.processes import ended, finish, group_left, make_images, start

TINY = shlex.split(
    "--cfg digits/hybrid model.embed_dim=16 model.depth=2 model.patch_size=2 model.merge.r=2 model.drop_path_rate=0.1 "
    "train.batch_size=16 train.epochs=3 split.part=0.25 log.every_steps=1 checkpoint.every_steps=1 threads=1 device=cpu"
)
CASES: dict[str, list[str]] = {
    "run": [],
    "workers": [
        "data.name=folder",
        "data.path=images",
        "data.size=16",
        "data.cache=none",
        "data.workers=2",
        "augment.crop=0",
        "augment.transforms=[{name: RandomAffine, degrees: 10}, {name: RandomResizedCrop}]",
        "model.img_size=16",
        "model.in_chans=3",
        "split.part=1",
        "train.batch_size=8",
    ],
    "folds": ["split.folds=2", "split.part=0.1", "train.epochs=2"],
    "gradual": [
        "model.weights=runs/whole-run",
        "finetune.mode=gradual",
        "finetune.groups=[{parts: [head], lr: 1e-3}, {parts: [vit.blocks.1, vit.norm], epoch: 1, lr: 1e-4}]",
    ],
}
TEMPORARY = (".last.pt.tmp", ".best.pt.tmp")
MEASURED = (
    "seconds",
    "images_per_second",
    "memory_mib",
    "peak_memory_mib",
    "finished",
    "name",
    "settings",
    "saved_mib",
)


def kill_and_compare(
    case: str, number: int, wanted: int, aimed: bool, work: Path, seconds: float, chance: random.Random
) -> tuple[int, str]:
    """Runs one case with kills to its end.

    Args:
        case: a key of CASES, of which the run `whole-CASE` is there.
        number: of the run.
        wanted: how often to kill it; less if it ends before.
        aimed: whether it is killed while a checkpoint is written; otherwise at a random moment.
        work: the folder of the runs.
        seconds: that the whole run took.
        chance: the source of moments.

    Returns:
        The number of kills, and what is wrong; "" if nothing is.
    """
    name, kills = f"{case}{number}", 0
    folder = work / "runs" / name
    arguments = [*TINY, *CASES[case], f"name={name}"]
    while True:
        process = start(
            "train", ["--resume", f"runs/{name}"] if (folder / "settings.yaml").exists() else arguments, work
        )
        code = None
        if kills < wanted:
            code = _kill(process, folder, aimed, seconds / wanted, chance)
            kills += code == -signal.SIGKILL
            if not (folder / "settings.yaml").exists() and code == -signal.SIGKILL:
                shutil.rmtree(folder, ignore_errors=True)  # it had not begun; what is left is in nobody's way
        while code is None:
            time.sleep(0.01)
            code = ended(process)
        if group_left(process):
            return kills, "left processes behind"
        if code == 0:
            break
        if code != -signal.SIGKILL:
            return kills, f"exit code {code}"
    differences = list(compare(work / "runs" / f"whole-{case}", folder))
    shutil.rmtree(folder)
    return kills, ", ".join(differences)


def _kill(process: int, folder: Path, aimed: bool, seconds: float, chance: random.Random) -> int:
    """Kills a process in its first seconds, or at the next save after that; returns its exit code.

    It is another one than that of SIGKILL if the process ended before.
    """
    deadline = time.monotonic() + chance.uniform(0, seconds)
    while time.monotonic() < deadline:
        if (code := ended(process)) is not None:
            return code
        time.sleep(0.002)
    parts = [folder, *(folder / f"fold{i}" for i in range(2))] if aimed else []
    while parts and not any((part / name).exists() for part in parts for name in TEMPORARY):
        if (code := ended(process)) is not None:
            return code
        time.sleep(0.0002)
    time.sleep(chance.uniform(0, 0.004))
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def compare(whole: Path, other: Path) -> Iterator[str]:
    """Yields the names of the files that differ between two runs, apart from times and sizes in memory."""
    for path in sorted(whole.rglob("*")):
        name, twin = path.relative_to(whole), other / path.relative_to(whole)
        if path.suffix not in (".pt", ".json", ".jsonl", ".csv"):
            continue
        if not twin.exists() or _content(path) != _content(twin):
            yield str(name)


def _content(path: Path) -> object:
    """Returns what a file says, without what is measured anew by each run."""
    if path.suffix == ".pt":
        return _plain(torch.load(path, weights_only=True))
    if path.suffix == ".jsonl":
        return [_plain(json.loads(line)) for line in path.read_text().splitlines()]
    return _plain(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _plain(value: object) -> object:
    """Returns a value that can be compared by ==, tensors as their bytes."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if key not in MEASURED}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs that are killed")
    parser.add_argument("--kills", type=int, help="of each run (default: one to three)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which of the cases")
    parser.add_argument("--aimed", action="store_true", help="kill only while checkpoints are written")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    chance, wrong, all_kills = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_images(work / "images", 60, (24, 20))
        seconds = {}
        for case in dict.fromkeys(["run", *args.cases] if "gradual" in args.cases else args.cases):
            started = time.monotonic()
            finish("train", [*TINY, *CASES[case], f"name=whole-{case}"], work)
            seconds[case] = time.monotonic() - started
        for number in range(args.runs):
            case, aimed = args.cases[number % len(args.cases)], args.aimed or number // len(args.cases) % 2 == 0
            wanted = args.kills or chance.randint(1, 3)
            kills, said = kill_and_compare(case, number, wanted, aimed, work, seconds[case], chance)
            wrong, all_kills = wrong + bool(said), all_kills + kills
            print(
                f"{number + 1} {case}, {kills} kills{' while saving' if aimed else ''}: {said or 'the same'}",
                flush=True,
            )
            if said:
                print((work / "output.txt").read_text()[-2000:])
    print(f"{args.runs - wrong} of {args.runs} killed runs ended bit-identical, after {all_kills} kills")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
