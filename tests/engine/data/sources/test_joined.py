"""Labels that are joined in one cell: split by the option, or asked about, and never one class per combination."""

from __future__ import annotations

import pytest
import torch

from engine.data import DATASETS, load_raw
from models.settings import UserError, check
from tests.engine.data.conftest import save_image


@pytest.fixture
def load(tmp_path):
    """Reads a table of so many images whose column `labels` holds these cells."""

    def call(*cells: str, column: str = "labels", labels: str = "many", **options):
        for i in range(len(cells)):
            if not (tmp_path / f"{i}.png").exists():
                save_image(tmp_path / f"{i}.png", i)
        rows = [f'{i}.png,"{cell}"\n' for i, cell in enumerate(cells)]
        (tmp_path / "t.csv").write_text(f"path,{column}\n" + "".join(rows))
        tree = {"name": "csv", "path": str(tmp_path / "t.csv"), "size": 8, "labels": labels, **options}
        return load_raw(check(DATASETS["csv"][0], tree, "data"))

    return call


@pytest.mark.parametrize(
    ("word", "character"),
    [("bar", "|"), ("comma", ","), ("slash", "/"), ("blank", " "), ("newline", "\n"), ("plus", " + "), ("hyphen", "-")],
)
def test_joined_cells_are_asked_about_and_split(load, word, character):
    cells = [cell.replace("|", character) for cell in ("Mass|Effusion", "Mass", "Nodule|Mass", "Effusion|Nodule", "")]
    with pytest.raises(UserError) as caught:
        load(*cells)
    line = str(caught.value)
    assert "3 of 4 cells may be several names, such as " in line and repr(cells[0]) in line
    assert f"set data.label_separator={word} (3 labels), or semicolon if each is one name (4 labels)" in line
    raw = load(*cells, label_separator=word)
    assert raw.classes == ["Effusion", "Mass", "Nodule"]
    assert raw.train.labels.equal(torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]]))
    assert load(*cells, label_separator=character.strip() or character).classes == raw.classes, "or the character"
    assert len(load(*cells, label_separator="semicolon").classes) == 4


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        # as in ChestX-ray14, where most images have one finding
        (["No Finding"] * 5 + ["Mass", "Effusion", "Mass|Effusion"], "set data.label_separator=bar (3 labels)"),
        (["a|b", "c", "d"], "bar (4 labels)"),
        (["cats, dogs and birds", "cats", "birds"], "comma (3 labels), or semicolon if each is one name (3 labels)"),
        (["clear primary", "haze primary", "cloudy"], "blank (4 labels)"),
        (["a, b/c", "b/c", "a"], "comma (2 labels) or slash (4 labels)"),
        (["a|b", "b|c", "c;a"], "bar (4 labels)"),
    ],
)
def test_doubt_is_asked_about(load, cells, words):
    with pytest.raises(UserError) as caught:
        load(*cells)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["hard hat; safety vest", "hard hat", "no entry"], ["hard hat", "no entry", "safety vest"]),
        (["No Finding", "Mass", "Effusion"], ["Effusion", "Mass", "No Finding"]),
        (["t-shirt", "jeans", "top_hat"], ["jeans", "t-shirt", "top_hat"]),
        (["C++", "C", "R&D"], ["C", "C++", "R&D"]),
        (["red;round;red", " red ; ", ";round"], ["red", "round"]),
        (["é;b", "e\u0301", "b"], ["b", "é"]),
    ],
)
def test_names_that_are_one_are_not_asked_about(load, cells, classes):
    assert load(*cells).classes == classes


def test_lists_of_a_program(load):
    with pytest.raises(UserError, match="has a program's lists, such as .*'Mass', 'Edema'.*; write the names alone"):
        load("['Mass', 'Edema']", "['Mass']")


def test_zeros_and_ones_in_one_cell(load):
    with pytest.raises(
        UserError, match="has 0 and 1 in place of names, such as '0 1 1'; write a column of 0 and 1 for"
    ):
        load("0 1 1", "1 0 0", label_separator="blank")


def test_a_bar_at_the_end_is_no_part_of_a_name(load):
    with pytest.raises(UserError, match="bar"):
        load("Mass|", "Edema")
    assert load("Mass|", "Edema", label_separator="bar").classes == ["Edema", "Mass"]


def test_the_option_needs_many_labels_in_one_column(load):
    with pytest.raises(UserError, match="label_separator = bar: joins many labels; set labels=many as well"):
        load("a|b", "a", column="label", labels="one", label_separator="bar")
    with pytest.raises(UserError, match="data.label_separator = 'bar' needs a column labels"):
        load("1", "0", column="a", label_separator="bar")
    with pytest.raises(UserError, match="data.label_separator = '#'"):
        load("a", "b", label_separator="#")


def test_one_label_that_looks_like_several_is_said(load, caplog):
    raw = load("Mass|Edema", "Mass|Edema", "Mass", column="label", labels="one")
    assert raw.classes == ["Mass", "Mass|Edema"]
    assert "2 of 3 labels may be several names, and are taken as one class each: 'Mass|Edema'; " in caplog.text
    assert "call the column labels and set data.labels=many data.label_separator=bar" in caplog.text
    caplog.clear()
    load("cats, dogs", "a/b", "x", "y z", column="label", labels="one")
    assert "several names" not in caplog.text


def test_what_programs_write_for_nothing_is_said(load, caplog):
    assert load("nan", "a", "b").classes == ["a", "b", "nan"]
    assert "1 class is called as programs write a missing value: 'nan'; leave the cell empty" in caplog.text
