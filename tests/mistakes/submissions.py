"""Mistakes in submissions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.mistakes.mistake import Mistake

SAMPLE = ("ID,Label", "1.jpg,cafe\u0301", "2.jpg,tea")
VALIDATE = "tools/data.py validate mine.csv --sample sample.csv"
WRONG = "mine.csv: 1 kind of mistake, listed above; correct the file, or write it with tools/predict.py --sample "


def _files(*mine: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "sample.csv").write_text("".join(f"{row}\n" for row in SAMPLE))
        (folder / "mine.csv").write_text("".join(f"{row}\n" for row in mine))

    return make


MISTAKES: list[Mistake] = [
    Mistake(
        "A submission that spells labels in other bytes than the sample (caf\u00e9 in NFC, not NFD)",
        VALIDATE,
        WRONG + "sample.csv",
        _files("ID,Label", "1.jpg,caf\u00e9", "2.jpg,tea"),
    ),
    Mistake("A submission with a spreadsheet's line sep=,", VALIDATE, WRONG + "sample.csv", _files("sep=,", *SAMPLE)),
    Mistake(
        "Blanks after the commas of a submission",
        VALIDATE,
        "warning: blanks stand before quotation marks, which many scorers take for a part of the name: remove them",
        _files('"ID", "Label"', '"1.jpg", "tea"', '"2.jpg", "tea"'),
        code=0,
    ),
]
