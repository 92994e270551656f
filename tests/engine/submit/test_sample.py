"""Sample files of a competition are read, and what they ask for."""

from __future__ import annotations

import re

import pytest

from engine.submit.images import spelled as spelled_by
from engine.submit.sample import Sample, read_sample
from engine.tasks import MANY_LABELS, ONE_LABEL
from models.settings import UserError
from tests.engine.submit.text_files import FILES, problems, text_file


def test_separators_byte_order_marks_and_line_ends(tmp_path):
    plain = read_sample(text_file(tmp_path / "a.csv", "ID,Label", "1.jpg,x", "2.jpg,y"))
    assert (plain.columns, plain.ids, plain.ids_at, plain.labels) == (["ID", "Label"], FILES[:2], 0, ("x", "y"))
    for separator in ",;\t":
        lines = [line.replace(",", separator) for line in ("ID,Label", "1.jpg,x", "2.jpg,y")]
        for end, start in (("\n", b""), ("\r\n", b"\xef\xbb\xbf"), ("\r\n", b""), ("\n", b"\xef\xbb\xbf")):
            read = read_sample(text_file(tmp_path / "b.csv", *lines, end=end, start=start))
            assert read.separator == separator and (read.columns, read.ids) == (plain.columns, plain.ids)


def test_the_column_of_ids_is_the_one_that_names_images(tmp_path):
    path = text_file(tmp_path / "a.csv", "Label,ID", "1,1.jpg", "1,2.jpg", "1,10.jpg")
    read = read_sample(path, lambda cells: spelled_by(cells, FILES)[1])  # the label 1 is the stem of 1.jpg
    assert (read.ids_at, read.ids, read.others) == (1, FILES, ["Label"])
    assert read_sample(path).ids_at == 1, "without images: where no text is there twice"


def test_what_is_asked_for():
    one = Sample("s", ["id", "label"], 0, FILES, labels=("cat",))
    assert not one.asks_for_probabilities(["cat", "dog"], ONE_LABEL)
    each = Sample("s", ["dog", "id", "cat"], 1, FILES, numeric=True)
    assert each.asks_for_probabilities(["cat", "dog"], ONE_LABEL)
    with pytest.raises(UserError, match=r"not one for each of the 2 classes: 1 is not a class \('dog'\), 1 class "):
        each.asks_for_probabilities(["cat", "cow"], ONE_LABEL)
    with pytest.raises(UserError, match="column 'dog' is one of 2 classes and holds numbers"):
        Sample("s", ["id", "dog"], 0, FILES, ",", ("0.5",), numeric=True).asks_for_probabilities(
            ["cat", "dog"], ONE_LABEL
        )
    assert not Sample("s", ["id", "1"], 0, FILES, labels=("2",), numeric=True).asks_for_probabilities(
        ["1", "2"], ONE_LABEL
    )


@pytest.mark.parametrize(
    ("theirs", "spelled"),
    [
        (["cat", "dog 1", "x-y"], True),
        (["Cat", "DOG_01", "X Y"], True),
        (["X Y", "Dog  1", "cat"], True),
        (["Cat", "Dog 1"], False),  # not all: what the third would be is not known
        (["Cat", "Dog 1", "X Y", "x_y"], False),
        (["Cat", "Dog 2", "X Y"], False),
        (["Cat", "Dog1", "X Y"], False),
        (["cat"], False),
    ],
)
def test_names_are_spelled_as_in_the_sample(tmp_path, theirs, spelled):
    classes = ["cat", "dog 1", "x-y"]
    labels = Sample("s", ["id", "label"], 0, FILES, labels=tuple(theirs))
    columns = Sample("s", ["id", *theirs], 0, FILES, numeric=True)
    for sample in (labels, columns):
        found = sample.spelling(classes, ONE_LABEL)
        assert set(found) == set(classes) and set(found.values()) == set(theirs if spelled else classes)
    if spelled:
        assert all(found[name][0].casefold() == name[0] for name in classes)
        assert columns.asks_for_probabilities(classes, ONE_LABEL)
        rows = ["id,label", *(f"{name},{found['cat']}" for name in FILES)]
        assert not problems(tmp_path / "a.csv", *rows, sample=labels, classes=classes)
        rows[1] = f"{FILES[0]},Dogs"
        assert "1 label is unknown: 'Dogs'" in problems(tmp_path / "a.csv", *rows, sample=labels, classes=classes)[0]
    elif len(theirs) > 1:
        with pytest.raises(UserError, match="not one for each of the 3 classes"):
            columns.asks_for_probabilities(classes, ONE_LABEL)


@pytest.mark.parametrize(
    ("classes", "theirs"),
    [(["a", "A"], ("A", "a")), (["-1", "0"], ("1", "0")), (["1.05", "2"], ("1.5", "2")), (["1_1", "2"], ("11", "2"))],
)
def test_names_that_are_two(classes, theirs):
    found = Sample("s", ["id", "l"], 0, FILES, labels=theirs).spelling(classes, ONE_LABEL)
    assert found == {name: name for name in classes}


def test_many_names_are_spelled_as_in_the_sample():
    sample = Sample("s", ["id", "labels"], 0, FILES, labels=("", "Cat", "Cat; DOG"))
    assert sample.spelling(["cat", "dog"], MANY_LABELS) == {"cat": "Cat", "dog": "DOG"}
    assert not sample.asks_for_probabilities(["cat", "dog"], MANY_LABELS)
    assert sample.spelling(["cat", "dog"], ONE_LABEL) == {"cat": "cat", "dog": "dog"}, (
        "one label: two cells are no class"
    )


def test_many_labels_that_cannot_be_joined_as_in_the_sample():
    for cells in (("", "cat", "cat; dog"), ("cat",)):
        with pytest.raises(UserError, match="joined by ;, which these labels contain: 'a;b'"):
            Sample("s", ["id", "labels"], 0, FILES, labels=cells).asks_for_probabilities(
                ["a;b", "cat", "dog"], MANY_LABELS
            )
    for cells, joint in (
        (("cat owl",), ";"),
        (("CAT|dog",), "|"),
        (("cat|dog", "cat;dog"), ";"),
        (("big cat dog",), ";"),
    ):
        sample, cell = Sample("s", ["id", "l"], 0, FILES, labels=cells), re.escape(repr(cells[0]))
        said = rf"has {cell}, which is not names of classes \(.*\) joined by '{re.escape(joint)}'"
        with pytest.raises(UserError, match=said):
            sample.asks_for_probabilities(["big cat", "cat", "dog", "emu"], MANY_LABELS)


NFC, NFD = "é", "e\u0301"


@pytest.mark.parametrize(
    ("classes", "theirs", "spelled"),
    [
        ([NFC, "b"], (NFD, "b"), [NFD, "b"]),
        ([NFD, "b"], (NFC,), [NFC, "b"]),  # not all labels are in the sample
        ([NFC, f"{NFC}2", "b"], (NFD,), [NFD, f"{NFD}2", "b"]),  # those that are not have the form of those that are
        ([NFC, f"{NFD}2", "b"], ("b",), [NFC, f"{NFD}2", "b"]),  # nothing tells the form
        ([NFC, f"{NFD}2"], (NFD, f"{NFC}1"), [NFD, f"{NFD}2"]),
        ([NFC, NFD, "b"], (NFD,), [NFC, NFD, "b"]),  # an older version kept them apart
        (["Zoe\u0308", "b"], ("ZO\u00cb", "B"), ["ZO\u00cb", "B"]),
    ],
)
def test_names_have_the_bytes_of_the_sample(classes, theirs, spelled):
    for task in (ONE_LABEL, MANY_LABELS):
        found = Sample("s", ["id", "label"], 0, FILES, labels=theirs).spelling(classes, task)
        assert [found[name] for name in classes] == spelled
    columns = Sample("s", ["id", NFD, "b"], 0, FILES, numeric=True)
    assert columns.asks_for_probabilities(["b", NFC], ONE_LABEL)


@pytest.mark.parametrize(
    "lines", [['"ID", "Label"', '"1.jpg", "x"', '"2.jpg", "y"'], ["sep=;", "ID;Label", "1.jpg;x", "2.jpg;y"]]
)
def test_samples_of_people_and_spreadsheets(tmp_path, lines):
    found = read_sample(text_file(tmp_path / "a.csv", *lines), lambda cells: spelled_by(cells, FILES)[1])
    assert (found.columns, found.ids, found.labels) == (["ID", "Label"], FILES[:2], ("x", "y"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["1.jpg,x", "2.jpg,x", "10.jpg,x"], "the first line names an image, '1.jpg'; write a header above it"),
        (["1,x", "2,x", "10,x"], "the first line names an image, '1'"),
        (["ID", "1.jpg"], "a single column, 'ID'"),
        (["ID|Label", "1.jpg|x"], "a single column, 'ID.Label'; .* separated by commas, semicolons or tabs"),
        (["ID,Label"], "1 row; a header and a row for each image are needed"),
        (["ID,Label", "1.jpg,x", "1.jpg,x", "2.jpg,x"], "2 rows have the same ID as another"),
        (["ID,Label", "1.jpg,x", ",x"], "1 row has no ID"),
        (["ID,Label", "1.jpg"], "1 row does not have the header's 2 cells"),
    ],
)
def test_samples_that_are_none(tmp_path, lines, words):
    with pytest.raises(UserError, match=words):
        read_sample(text_file(tmp_path / "a.csv", *lines), lambda cells: spelled_by(cells, FILES)[1])
