"""Sample files and submissions as text, for the tests."""

from __future__ import annotations

import csv
from pathlib import Path

from engine.submit.sample import Sample
from engine.submit.validate import validate

FILES = ["1.jpg", "2.jpg", "10.jpg"]


SAMPLE = Sample("sample.csv", ["ID", "Label"], 0, FILES)


def text_file(path: Path, *lines: str, end: str = "\n", start: bytes = b"") -> Path:
    path.write_bytes(start + "".join(line + end for line in lines).encode())
    return path


def cells(path: Path, separator: str = ",") -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def problems(path: Path, *lines: str, sample: Sample = SAMPLE, **known) -> list[str]:
    return validate(text_file(path, *lines), sample, **known).problems
