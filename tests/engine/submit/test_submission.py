"""Submissions are written, guarded against formulas, and never replace a file by a wrong one."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.tables.cells import guarded, is_formula, unguarded
from engine.submit.sample import Sample, read_sample
from engine.submit.submission import write
from engine.submit.validate import Report, validate
from engine.tasks import ONE_LABEL
from models.settings import UserError
from tests.engine.submit.text_files import FILES, SAMPLE, cells, text_file


def test_what_is_one():
    formulas = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "-1+2", "=cmd()", " =a", "＝a", "-", "+1x"]
    assert all(map(is_formula, formulas))
    assert not any(map(is_formula, ["", "a", "-1", "+1.5", "-.5e-3", "1e5", "a=b", "'=a", "3-4"]))


@given(st.text(alphabet="'=+-@\t\r\n a1", max_size=6))
def test_the_apostrophe_comes_off_again(cell):
    assert unguarded(guarded(cell)) == cell and not is_formula(guarded(cell))


def test_written_guarded_and_quoted_or_kept(tmp_path, caplog):
    path, rows = tmp_path / "out.csv", [["=cmd()"], ["-3"], ["'=a"]]
    sample = Sample("s", ["@ID", "Label"], 0, ["-a.jpg", "+2", "3"])
    with caplog.at_level(logging.WARNING, "hybridmerge"):
        write(path, sample, rows)
    assert path.read_text() == '"\'@ID",Label\n"\'-a.jpg","\'=cmd()"\n+2,-3\n3,"\'\'=a"\n'
    assert "4 texts would be computed by a spreadsheet" in caplog.text and "'=cmd()'" in caplog.text
    classes = ["=cmd()", "-3", "'=a"]
    assert validate(path, sample, classes, ONE_LABEL).problems == []
    assert read_sample(path).ids == sample.ids and read_sample(path).columns == sample.columns

    write(path, sample, rows, keep_formulas=True)
    assert cells(path) == [["@ID", "Label"], ["-a.jpg", "=cmd()"], ["+2", "-3"], ["3", "'=a"]]
    (said,) = validate(path, sample, classes, ONE_LABEL).problems[:1]
    assert said.startswith("3 cells would be computed by a spreadsheet: '@ID' (line 1), '-a.jpg' (line 2), '=cmd")


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from(",;\t"),
)
def test_any_name_comes_back(tmp_path_factory, names, separator):
    sample = Sample("s", ["ID", "Label"], 0, FILES, separator)
    path = tmp_path_factory.mktemp("any") / "out.csv"
    write(path, sample, [[name] for name in names])
    read = cells(path, separator)
    assert [unguarded(row[1]) for row in read[1:]] == names and [row[0] for row in read[1:]] == FILES


def test_columns_of_the_sample(tmp_path):
    write(tmp_path / "out.csv", Sample("s", ["b", "id", "a"], 1, FILES[:2], ";"), [["x", "y;z"], ["u", "v"]])
    assert (tmp_path / "out.csv").read_bytes() == b'b;id;a\nx;1.jpg;"y;z"\nu;2.jpg;v\n'


def test_what_is_wrong_never_takes_the_name(tmp_path):
    path = text_file(tmp_path / "out.csv", "old")
    with pytest.raises(UserError, match="not written: two; three"):
        write(path, SAMPLE, [["a"]] * 3, check=lambda file: Report(["two", "three"], []))
    assert path.read_text() == "old\n" and [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_the_file_is_judged_as_it_stands_on_disk(tmp_path):
    seen = []
    write(tmp_path / "out.csv", SAMPLE, [["a"]] * 3, check=lambda p: seen.append(p.read_text()) or Report([], []))
    assert seen == ["ID,Label\n1.jpg,a\n2.jpg,a\n10.jpg,a\n"] == [(tmp_path / "out.csv").read_text()]
