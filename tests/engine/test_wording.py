"""Counts with their nouns and verbs."""

import pytest

from engine.wording import counted


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (1, ["image"], "1 image"),
        (0, ["image"], "0 images"),
        (2, ["class"], "2 classes"),
        (1, ["class"], "1 class"),
        (1, ["row has", "rows have"], "1 row has"),
        (12, ["row has", "rows have"], "12 rows have"),
    ],
)
def test_one_is_singular(count, words, said):
    assert counted(count, *words) == said
