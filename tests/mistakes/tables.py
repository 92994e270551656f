"""Mistakes in tables of images and in arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.engine.data.conftest import save_image
from tests.mistakes.mistake import Mistake


def _table(*rows: str, images: Sequence[str] = ("1.png", "2.png", "3.png"), encoding: str = "utf-8") -> Callable:
    def make(folder: Path) -> None:
        for seed, name in enumerate(images):
            save_image(folder / name, seed)
        (folder / "table.csv").write_bytes("".join(f"{row}\n" for row in rows).encode(encoding))

    return make


def _arrays(folder: Path) -> None:
    images, labels = np.zeros((12, 8, 8), np.uint8), np.tri(12, 3, dtype=np.uint8)
    np.savez(folder / "chest.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)


MISTAKES: list[Mistake] = [
    Mistake(
        "Labels joined in one cell by something else than semicolons",
        "tools/data.py check table.csv data.labels=many",
        "data.path = 'table.csv': column 'labels': 2 of 3 cells may be several names, such as 'Mass|Effusion'; set "
        "data.label_separator=bar (3 labels), or semicolon if each is one name (3 labels)",
        _table("path,labels", "1.png,Mass|Effusion", "2.png,Mass", "3.png,Effusion|Nodule"),
    ),
    Mistake(
        "Several labels of an image in a table for one label",
        "tools/data.py check table.csv",
        "2 of 3 labels may be several names, and are taken as one class each; for "
        "several, call the column labels and set data.labels=many data.label_separator=bar",
        _table("path,label", "1.png,Mass|Effusion", "2.png,Mass", "3.png,Effusion|Nodule"),
        code=0,
    ),
    Mistake(
        "A separator of labels where each image has one label",
        "tools/data.py check table.csv data.label_separator=bar",
        "data.label_separator = bar: joins many labels; set labels=many as well",
        _table("path,label", "1.png,a", "2.png,b"),
    ),
    Mistake(
        "Lists of a program in the column of labels",
        "tools/data.py check table.csv data.labels=many",
        "data.path = 'table.csv': column 'labels' has a program's lists, such as \"['Mass', 'Nodule']\"; write the "
        "names alone, separated by ;",
        _table("path,labels", "1.png,\"['Mass', 'Nodule']\"", "2.png,['Mass']"),
    ),
    Mistake(
        "Arrays with a column for each label",
        "tools/train.py --cfg digits/vit data.name=npz data.path=chest.npz",
        "chest.npz: train_labels: shape (12, 3) of 0 and 1: set data.labels=many if any number of labels apply to an "
        "image",
        _arrays,
    ),
    Mistake(
        "Arrays to be checked as a table",
        "tools/data.py check chest.npz",
        "chest.npz: arrays, which are checked as training starts: data.name=npz data.path=chest.npz",
        _arrays,
    ),
    Mistake(
        "A table without a header",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': the first line names an image, '1.png'; write a header above it: path,label",
        _table("1.png,a", "2.png,b", "3.png,a"),
    ),
    Mistake(
        "Numbers of rows before the names of images, as pandas writes them, where the images are numbered too",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': columns 'Unnamed: 0' and 'image' both name images; call the column of the paths path",
        _table("Unnamed: 0,image,label", "1,3.png,a", "2,1.png,b", "3,2.png,a"),
    ),
    Mistake(
        "Paths of another computer",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': training cannot start: 3 of 3 files are not in ...; see above",
        _table("path,label", *(rf"C:\data\{i}.png,{i}" for i in (1, 2, 3))),
    ),
    Mistake(
        "A path without extension that names two files",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': training cannot start: 1 row names several files; see above",
        _table("path,label", "1,a", "2,b", images=("1.png", "1.jpg", "2.png")),
    ),
    Mistake(
        "A table that is not UTF-8",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': not UTF-8 but UTF-16; save the table as CSV in UTF-8",
        _table("path,label", "1.png,a", "2.png,b", encoding="utf-16"),
    ),
    Mistake(
        "A first line that names another separator than the supported ones",
        "tools/data.py check table.csv",
        "data.path = 'table.csv': the first line names '|'; separate cells by commas, semicolons or tabs",
        _table("sep=|", "path|label", "1.png|a", "2.png|b"),
    ),
]
