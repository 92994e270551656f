"""Mistakes in comparing ways of merging in a pretrained model."""

from __future__ import annotations

from pathlib import Path

from tests.engine.data.conftest import save_image
from tests.engine.study.zeroshot.conftest import make_files
from tests.mistakes.mistake import Mistake


def _files(folder: Path) -> None:
    make_files(folder)


def _other_classes(folder: Path) -> None:
    make_files(folder)
    for number in range(2):
        save_image(folder / "images" / "my cat" / f"{number}.png", number, (64, 64))


def _of_a_run(folder: Path) -> None:
    make_files(folder)
    (folder / "run").mkdir()
    (folder / "run" / "settings.yaml").write_text("name: run")


MISTAKES: list[Mistake] = [
    Mistake(
        "A config of tools/zeroshot.py that does not exist",
        "tools/zeroshot.py --cfg deit_tinny",
        "'deit_tinny': no such file, and no such name under configs/; did you mean zeroshot/deit_tiny?",
    ),
    Mistake(
        "Images of a class that the pretrained model does not have",
        "tools/zeroshot.py --cfg small.yaml",
        "data.path: 'my cat' is none of ImageNet's classes, or several; ..., or give classes=FILE.csv with lines "
        "CLASS,ID",
        _other_classes,
    ),
    Mistake(
        "A budget that merging cannot reach in a pretrained model",
        "tools/zeroshot.py --cfg small.yaml budgets='[{target_ratio: 50}]'",
        "row 'tome, 50 times fewer MACs': merge.target_ratio = 50.0 ...: out of reach; ...",
        _files,
    ),
    Mistake(
        "Rows of a comparison in the folder of a training run",
        "tools/zeroshot.py --cfg small.yaml out=run",
        "out = 'run': is the folder of a training run; give another",
        _of_a_run,
    ),
    Mistake(
        "Fitting to rows that have no budget of multiply-adds",
        "tools/zeroshot.py --cfg small.yaml --fit schedule",
        "budgets: none of multiply-adds, which --fit meets; give budgets=[{target_gmacs: 0.9}]",
        _files,
    ),
    Mistake(
        "A threshold for a method that takes none",
        "tools/zeroshot.py --cfg small.yaml methods=[pitome] budgets='[{target_ratio: 1.2}]' --fit threshold",
        "row 'pitome, 1.2 times fewer MACs': merge.method = 'pitome': takes no threshold; use one of ..., or fit a "
        "schedule",
        _files,
    ),
]
