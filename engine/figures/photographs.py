"""Photographs that come with installed packages, with their credits; tools/picture.py can draw them by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from models.settings import UserError, nearest


class Photograph(NamedTuple):
    """A photograph in an installed package, and the credit that its licence asks for wherever it is shown."""

    package: str
    file: str
    credit: str


# scikit-learn's README names danielbuechele for both of its photographs, but its links for the flower are vultilion's.
PHOTOGRAPHS = {
    "china": Photograph("sklearn.datasets", "images/china.jpg", "danielbuechele (Flickr), CC BY 2.0"),
    "flower": Photograph("sklearn.datasets", "images/flower.jpg", "vultilion (Flickr), CC BY 2.0"),
    "grace_hopper": Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "U.S. Navy, public domain"),
}


def path_of(name: str) -> Path:
    """Returns the file of a photograph: one of PHOTOGRAPHS by its name, or any path.

    Raises:
        UserError: there is no such file and no photograph of that name.
    """
    photograph = PHOTOGRAPHS.get(name)
    path = Path(str(files(photograph.package) / photograph.file)) if photograph else Path(name)
    if not path.is_file():
        raise UserError(
            f"--images {name}: no such image file or built-in photograph; {nearest(name, list(PHOTOGRAPHS))}"
        )
    return path


def credit_line(names: Sequence[str]) -> str:
    """Returns the credits of the names that are in PHOTOGRAPHS; an empty text for a user's own files."""
    credits = [f"{name} by {PHOTOGRAPHS[name].credit}" for name in dict.fromkeys(names) if name in PHOTOGRAPHS]
    return f"Photographs, made square: {'; '.join(credits)}." if credits else ""
