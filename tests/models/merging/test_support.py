"""The table of what works with what in docs/merging.md: it is tried here again."""

import pytest

from tests.models.merging import support


def test_the_table_has_every_model_and_column():
    page = support.written()
    assert [*page] == [*support.MODELS], "python -m tests.models.merging.support writes it again"
    assert all([*row] == [*support.COLUMNS] for row in page.values())


@pytest.mark.parametrize("name", support.MODELS)
def test_the_table_says_what_works(name):
    assert support.written()[name] == support.row_of(name), "python -m tests.models.merging.support writes it again"
