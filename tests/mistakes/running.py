"""Mistakes that show when a run starts or while it trains."""

from __future__ import annotations

from pathlib import Path

from engine.runs.folder import RunFolder
from engine.runs.lock import Lock
from tests.mistakes.mistake import Hidden, Mistake


def _run_in_progress(folder: Path) -> Lock:
    (folder / "runs" / "mine").mkdir(parents=True)
    return RunFolder(folder / "runs" / "mine").lock()


def _without_mlflow(folder: Path) -> Hidden:
    return Hidden("mlflow")


MISTAKES: list[Mistake] = [
    Mistake(
        "A GPU where there is none",
        "tools/train.py --cfg digits/vit device=cuda:7",
        "device = 'cuda:7': ... CUDA devices here; use auto or cpu",
    ),
    Mistake(
        "Two runs in one folder",
        "tools/train.py --cfg digits/vit name=mine",
        "runs/mine: in use by process ...; wait for it or stop it, or use another name=",
        _run_in_progress,
    ),
    Mistake(
        "Activation checkpointing of a model without blocks",
        "tools/train.py --cfg digits/lenet5 train.checkpoint_activations=true device=cpu threads=1",
        "train.checkpoint_activations = true: LeNet5 has no blocks that repeat; set it to false",
    ),
    Mistake(
        "A learning rate at which training diverges",
        "tools/train.py --cfg digits/lenet5 train.lr=1000 device=cpu threads=1",
        "train.lr = 1000.0: the ... is ... after step ...; start a run under another name= with a lower train.lr, a "
        "longer train.warmup_epochs, or train.precision=fp32; nothing was saved yet",
    ),
    Mistake(
        "A tracker that is not installed",
        "tools/train.py --cfg digits/lenet5 log.trackers=[tensorboard,mlflow] device=cpu threads=1",
        "log.trackers: mlflow is not installed; pip install -e '.[mlflow]'",
        _without_mlflow,
    ),
    Mistake(
        "Slurm where there is none",
        "tools/train.py --cfg digits/vit --slurm partition=gpu",
        "--slurm: no sbatch on this machine; start it on a login node, or try it with --slurm local",
    ),
    Mistake(
        "An option that Slurm does not have",
        "tools/train.py --cfg digits/vit --slurm partitoin=gpu",
        "--slurm partitoin=gpu: unknown; write it as in partition=gpu; did you mean partition?",
    ),
    Mistake(
        "No process",
        "tools/train.py --cfg digits/vit --slurm local processes=0",
        "--slurm processes=0: must be at least 1; leave it out for the default",
    ),
]
