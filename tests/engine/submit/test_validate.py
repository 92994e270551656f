"""Submissions are checked: every mistake is reported."""

from __future__ import annotations

import pytest

from engine.data.tables.cells import number
from engine.submit.sample import Sample
from engine.submit.validate import Report, class_folders, validate
from engine.tasks import MANY_LABELS, ONE_LABEL
from models.settings import UserError
from tests.engine.submit.text_files import FILES, SAMPLE, problems, text_file

NFC, NFD = "é", "e\u0301"
GOOD = ["ID,Label", "1.jpg,a", "2.jpg,b", "10.jpg,a"]


def test_what_is_right(tmp_path):
    report = validate(text_file(tmp_path / "a.csv", *GOOD), SAMPLE, ["a", "b", "c"], ONE_LABEL)
    assert report == Report([], [], "3 rows, 2 of 3 labels; most often 'a' (2), least 'b' (1)")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([*GOOD[:3]], ["1 id is missing: '10.jpg'"]),
        ([*GOOD, "7.jpg,a"], ["1 id is not in the sample: '7.jpg'"]),
        ([*GOOD, "2.jpg,b"], ["1 id is more than once: '2.jpg'"]),
        (["ID,Label", "1,a", "2,b", "10,a"], ["3 ids are missing", "spell them as the sample does"]),
        ([GOOD[0], GOOD[1], GOOD[3], GOOD[2]], ["not in the sample's order from line 3 on: '10.jpg', where"]),
        (["ID,Label", "1.jpg,a", "2.jpg,B", "10.jpg,2.0"], ["2 labels are unknown: 'B' (1 row), '2.0'"]),
        (["ID,Label", "1.jpg,a", "2.jpg,", "10.jpg,b"], ["1 row has no label: line 3"]),
        (["ID,Label", "1.jpg,a", "2.jpg,=b", "10.jpg,b"], ["1 cell would be computed", "1 label is unknown"]),
        (["Id,Label", *GOOD[1:]], ["columns are missing: 'ID'; the header has 'Id', 'Label'", "not in the sample"]),
        (["Label,ID", "a,1.jpg", "b,2.jpg", "a,10.jpg"], ["columns are not in the order ID, Label"]),
        (["ID,Label,x", "1.jpg,a,", "2.jpg,b,", "10.jpg,a,"], ["1 column is not in the sample: 'x'"]),
        ([line.replace(",", ";") for line in GOOD], ["separated by semicolons, the sample's by commas"]),
        (GOOD[1:], ["2 of the sample's columns are missing"]),
        (["ID,Label", "1.jpg"], ["1 row does not have the header's 2 cells (line 2)"]),
        ([], ["0 rows"]),
    ],
)
def test_each_kind_of_mistake(tmp_path, lines, words):
    found = problems(tmp_path / "a.csv", *lines, classes=["a", "b"], task=ONE_LABEL)
    for word in words:
        assert any(word in line for line in found), found
    assert all("\n" not in line for line in found)


def test_every_mistake_is_said(tmp_path):
    lines = ["ID,Label", "1.jpg,a", "1.jpg,c", "2.jpg,", "7.jpg,=x"]
    assert len(problems(tmp_path / "a.csv", *lines, classes=["a", "b"], task=ONE_LABEL)) == 6


def test_files_that_are_no_tables(tmp_path):
    path = tmp_path / "a.csv"
    assert "No such file" in validate(path, SAMPLE).problems[0]
    path.write_bytes("ID,Label\n1.jpg,é\n".encode("latin-1"))
    assert "not UTF-8" in validate(path, SAMPLE).problems[0]


def test_blanks_around_cells_are_a_warning(tmp_path):
    def said(*lines):
        found = validate(text_file(tmp_path / "s.csv", *lines), SAMPLE, ["a", " b"])
        assert not found.problems
        return [line for line in found.warnings if "blanks" in line]

    assert said("ID,Label", "1.jpg,a", "2.jpg, b", "10.jpg,a") == []  # the name itself has one
    (line,) = said("ID,Label ", "1.jpg,a", "2.jpg , b", "10.jpg, a")
    assert line.startswith("3 cells have blanks around them") and "'2.jpg ' (line 3)" in line


def test_what_is_odd_is_a_warning(tmp_path):
    same = validate(text_file(tmp_path / "a.csv", *(line.replace(",b", ",a") for line in GOOD)), SAMPLE, ["a", "b"])
    assert same.problems == [] and "every row says 'a'" in same.warnings
    unknown = validate(text_file(tmp_path / "a.csv", *GOOD), SAMPLE)
    assert unknown.problems == [] and "not compared with a list of classes" in unknown.warnings[0]


def test_many_labels(tmp_path):
    lines = ["ID,Label", "1.jpg,a;b", "2.jpg,", "10.jpg,b; c"]
    assert problems(tmp_path / "a.csv", *lines, classes=["a", "b", "c"], task=MANY_LABELS) == []
    assert "1 label is unknown: 'c'" in problems(tmp_path / "a.csv", *lines, classes=["a", "b"], task=MANY_LABELS)[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2.jpg,0.5,0.6", "1 row has probabilities that do not sum up to 1: line 3"),
        ("2.jpg,nan,1", "a probability that is not finite: line 3"),
        ("2.jpg,inf,0", "not finite"),
        ("2.jpg,-0.5,1.5", "outside 0 to 1"),
        ("2.jpg,x,1", "not a number"),
        ("2.jpg,,1", "not a number"),
        ('2.jpg,"0,25","0,75"', "1 row has a decimal comma in place of a point: line 3"),
    ],
)
def test_probabilities(tmp_path, row, words):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    lines = ["ID,b,a", "1.jpg,0.25,0.75", row, "10.jpg,1,0"]
    (said,) = problems(tmp_path / "a.csv", *lines, sample=sample, classes=["a", "b"], task=ONE_LABEL)
    assert words in said
    lines[2] = "2.jpg,3e-1,0.7"
    report = validate(text_file(tmp_path / "a.csv", *lines), sample, ["a", "b"], ONE_LABEL)
    assert report.problems == [] and "most often 'a' (2)" in report.summary


def test_two_signs_make_no_number(tmp_path):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    said = problems(tmp_path / "a.csv", "ID,b,a", "1.jpg,0.25,0.75", "2.jpg,+-inf,1", "10.jpg,1,0", sample=sample)
    assert "1 row has a cell that is not a number: line 3" in said


def test_sums_matter_for_one_label_alone(tmp_path):
    sample = Sample("s", ["ID", "b", "a"], 0, FILES, numeric=True)
    path = text_file(tmp_path / "a.csv", "ID,b,a", *(f"{name},0.9,0.8" for name in FILES))
    assert validate(path, sample, ["a", "b"], MANY_LABELS) == Report(
        [], [], "3 rows, 1 of 2 labels; most often 'b' (3), least 'b' (3)"
    )
    assert validate(path, sample).problems == [] and "do not sum up" in validate(path, sample).warnings[0]


def test_probabilities_survive_writing(tmp_path):
    values = [1e-12, 1 / 3, 2 / 3 - 1e-12]
    assert [float(number(v)) for v in values] == pytest.approx(values, rel=1e-8)


def test_names_of_class_folders(tmp_path):
    for name in ("train/10", "train/2", "train/.x", "test"):
        (tmp_path / name).mkdir(parents=True)
    assert class_folders(tmp_path) == ["2", "10"] == class_folders(tmp_path / "train")
    for folder, words in (("no", "no such folder"), ("test", "no folder in it")):
        with pytest.raises(UserError, match=words):
            class_folders(tmp_path / folder)


def test_the_same_names_in_other_bytes_than_the_samples(tmp_path):
    sample = Sample("s", ["ID", "Label"], 0, [f"{NFD}1", "2"], labels=(NFD, "b"))
    good = ["ID,Label", f"{NFD}1,{NFD}", "2,b"]
    for classes in ([NFC, "b"], [NFD, "b"], None):
        assert not problems(tmp_path / "a.csv", *good, sample=sample, classes=classes), "the sample's bytes"
        bad = problems(tmp_path / "a.csv", "ID,Label", f"{NFC}1,{NFC}", "2,b", sample=sample, classes=classes)
        assert len(bad) == 3 and "1 id is missing" in bad[0] and "differ from the sample's in Unicode's form" in bad[1]
        assert bad[2].startswith("1 label is that of the sample in other bytes: 'é'; they differ")
    silent = Sample("s", ["ID", "Label"], 0, ["1", "2"], labels=("0",))
    for classes in ([NFC, "b"], [NFD, "b"]):
        assert not problems(tmp_path / "a.csv", "ID,Label", f"1,{NFC}", "2,b", sample=silent, classes=classes)
    (said, *_) = problems(tmp_path / "a.csv", f"ID,{NFC}", "1,b", "2,b", sample=Sample("s", ["ID", NFD], 0, ["1", "2"]))
    assert "columns are missing" in said


def test_what_a_scorer_takes_for_something_else(tmp_path):
    (said,) = problems(tmp_path / "a.csv", "sep=,", *GOOD)
    assert said == "the first line names the separator, for spreadsheets; a scorer takes it for the header"
    report = validate(text_file(tmp_path / "a.csv", *(line.replace(",", ', "') + '"' for line in GOOD)), SAMPLE)
    assert not report.problems and "blanks stand before quotation marks" in report.warnings[0]
