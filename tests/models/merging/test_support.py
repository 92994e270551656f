"""The table of what works with what in docs/merging.md: it is tried here again."""

import pytest

from tests.marks import mostly_slow
from tests.models.merging import support


def test_the_table_has_every_model_and_column():
    page = support.written()
    assert [*page] == [*support.MODELS], "python -m tests.models.merging.support writes it again"
    assert all([*row] == [*support.COLUMNS] for row in page.values())


QUICK = ["`hybrid`", "timm: ViT, DeiT, AugReg", "timm: BEiT", "timm: EVA-02", "torchvision: ViT, SWAG"]


@pytest.mark.parametrize("name", mostly_slow(support.MODELS, [*QUICK, "transformers: ViT", "transformers: DINOv3"]))
def test_the_table_says_what_works(name):
    assert support.written()[name] == support.row_of(name), "python -m tests.models.merging.support writes it again"
