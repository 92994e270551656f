"""Mistakes in run folders and checkpoints."""

from __future__ import annotations

from pathlib import Path

from engine.runs.checkpoints import checkpoint
from engine.runs.folder import RunFolder
from engine.settings.changes import decisive
from engine.settings.schema import RunSettings
from models.settings import check
from tests.engine.conftest import TINY
from tests.mistakes.mistake import Mistake
from tests.results import results_of
from tests.tools.colours import COLOURS, VIT, colour_run, save_colour


def run_folder(path: Path) -> RunFolder:
    """A run folder whose training, as far as these mistakes need it, has ended."""
    path.mkdir()
    run, settings = RunFolder(path), check(RunSettings, TINY)
    run.write_settings(settings)
    for which in ("best", "last"):
        checkpoint.save(run.checkpoint(which), {"settings": decisive(settings), "data": "0" * 64})
    return run


def _edited(folder: Path) -> None:
    file = run_folder(folder / "run").settings_file
    file.write_text(file.read_text().replace("num_heads: 2", "num_heads: 4"))


def _mixed(folder: Path) -> None:
    run = run_folder(folder / "run")
    settings = check(RunSettings, {**TINY, "train": {**TINY["train"], "lr": 0.1}})
    checkpoint.save(run.checkpoint("best"), {"settings": decisive(settings)})


def _one_image_each(folder: Path) -> None:
    for name, colour in COLOURS.items():
        save_colour(folder / "images" / name / "only.png", colour)
    colour_run(folder / "run", data={"name": "folder", "path": str(folder / "images"), "size": 8})


def _learned(folder: Path) -> None:
    save_colour(folder / "red.png", COLOURS["1"])
    colour_run(folder / "run", model={**VIT, "merge": {"method": "patchmerger", "r": 4}})


def _without_checkpoint(folder: Path) -> None:
    run = run_folder(folder / "run")
    run.checkpoint("best").unlink()
    run.checkpoint("last").unlink()
    run.metrics_file.write_text('{"step": 500, "train/loss": 1.5}\n')


def _damaged(folder: Path) -> None:
    file = run_folder(folder / "run").checkpoint("last")
    file.write_bytes(file.read_bytes()[:-100] + b"?" * 100)


def _edited_results(folder: Path) -> None:
    run = run_folder(folder / "run")
    run.write_results(results_of())
    run.results_file.write_text(run.results_file.read_text().replace('"test_top1": 0.5', '"test_top1": 50'))


def _folder_for_a_file(folder: Path) -> None:
    run_folder(folder / "run").log_file.mkdir()


FIX = (
    "put the old value back into settings.yaml, or the run's own best.pt into the folder; to train with other "
    "settings, start a run under another name="
)
MISTAKES: list[Mistake] = [
    Mistake(
        "Settings of a run that were edited after its training",
        "tools/predict.py --run run --images . --out labels.csv",
        "model.num_heads = 4: the run was started with 2, says run/best.pt; " + FIX,
        _edited,
    ),
    Mistake(
        "A checkpoint of another run in a run folder",
        "tools/compare.py run",
        "train.lr = 0.003: the run was started with 0.1, says run/best.pt; last.pt was trained with those of "
        "settings.yaml: put the run's own best.pt into the folder",
        _mixed,
    ),
    Mistake(
        "Classes of one image, of which none is left to test",
        "tools/eval.py --run run",
        "--split test: the run has no such images (split.test = 0.2, but no class has an image to spare); use another",
        _one_image_each,
    ),
    Mistake(
        "Another number of tokens than a run has learned",
        "tools/picture.py --run run --images red.png --out merged.png merge.r=2",
        "run/best.pt: merge.method or merge.r is not that of training, and the method merges as it has learned alone; "
        "merge as in training, by a method that learns nothing, or not at all (merge.r=0)",
        _learned,
    ),
    Mistake(
        "Results in percent, where they are fractions",
        "tools/compare.py run",
        "run/results.json: test_metrics.top1: must be a fraction, from 0 to 1, not 50; or delete it and test again "
        "with --resume run",
        _edited_results,
    ),
    Mistake(
        "A folder in the place of a run's file",
        "tools/train.py --resume run",
        "run/log.txt: is a folder, where training writes a file; move it away",
        _folder_for_a_file,
    ),
    Mistake(
        "The last checkpoint of a stopped run was deleted",
        "tools/train.py --resume run",
        "run/last.pt: missing, although the run came to step 500; put it back, or start the run again under another "
        "name=",
        _without_checkpoint,
    ),
    Mistake(
        "A damaged checkpoint, and none before it",
        "tools/train.py --resume run",
        "run/last.pt: cut short, or not a checkpoint of this program: nothing is left to continue from; put a copy "
        "back, or start the run again under another name=",
        _damaged,
    ),
]
